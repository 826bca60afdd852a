// SPDX-License-Identifier: Apache-2.0

// Load asks services that are compared, all in the same way, and is the gRPC one of them.
//
//	load serve    answer calls; prints the address once it listens
//	load ask      make the loads that standard input names
//
// A line "SECONDS TARGET..." asks all its targets at once. A target is KIND,HOST:PORT,WORKERS,RATE. KIND is http, grpc or mysql. Each worker has one
// request under way at a time. RATE is that of all of them a second; 0 is as fast as they can.
// One line of JSON, a list with what came of each target, is printed in the end.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// items are the numbers that requests ask for in turn.
const items = 1000

// worker asks for item n and checks the answer.
type worker func(n int) error

// pool is the workers of a target, and what ends their connections.
type pool struct {
	workers []worker
	closers []io.Closer
}

func (p *pool) close() {
	for _, one := range p.closers {
		one.Close()
	}
}

// open makes the workers of a target; what it has made counts also where it fails.
var open = map[string]func(p *pool, address string, count int) error{
	"http": openHTTP, "grpc": openGRPC, "mysql": openMySQL,
}

type target struct {
	pool
	kind, address string
	rate          float64
}

// result is what is printed. Requests counts all that were answered, with one of each worker
// before time began; seconds and latencies are of what came after that.
type result struct {
	Requests  int     `json:"requests"`
	Failed    int     `json:"failed"`
	Seconds   float64 `json:"seconds"`
	LatencyNS []int64 `json:"latency_ns"`
}

func parse(text string) (*target, error) {
	words := strings.Split(text, ",")
	if len(words) != 4 || open[words[0]] == nil {
		return nil, fmt.Errorf("not a target: %s", text)
	}
	count, err := strconv.Atoi(words[2])
	if err != nil {
		return nil, err
	}
	rate, err := strconv.ParseFloat(words[3], 64)
	if err != nil {
		return nil, err
	}
	made := &target{kind: words[0], address: words[1], rate: rate}
	return made, open[made.kind](&made.pool, made.address, count)
}

// asked is a request that is to be made, and when. The zero time is as soon as possible.
type asked struct {
	n   int
	due time.Time
}

// run asks for `length`; latencies are kept where there is a rate.
func (t *target) run(length time.Duration) (result, error) {
	var all sync.WaitGroup
	each := make([]result, len(t.workers))
	failures := make([]error, len(t.workers))
	begin := time.Now()
	requests, err := t.schedule(begin, length)
	if err != nil {
		return result{}, err
	}
	for i, ask := range t.workers {
		all.Add(1)
		go func() {
			defer all.Done()
			for idle := time.Now(); ; idle = time.Now() {
				next, more := <-requests
				if !more {
					return
				}
				// A request waits where all workers are busy; that this program is woken late
				// is not the service's latency.
				from := time.Now()
				if idle.After(next.due) && !next.due.IsZero() {
					from = next.due
				}
				if err := ask(next.n % items); err != nil {
					each[i].Failed++
					failures[i] = err
					continue
				}
				each[i].Requests++
				if t.rate > 0 {
					each[i].LatencyNS = append(each[i].LatencyNS, int64(time.Since(from)))
				}
			}
		}()
	}
	all.Wait()
	sum := result{Requests: len(t.workers), Seconds: time.Since(begin).Seconds(), LatencyNS: []int64{}}
	for _, one := range each {
		sum.Requests += one.Requests
		sum.Failed += one.Failed
		sum.LatencyNS = append(sum.LatencyNS, one.LatencyNS...)
	}
	if sum.Failed > 0 {
		log.Printf("%s: %d failed: %v", t.kind, sum.Failed, errors.Join(failures...))
	}
	return sum, nil
}

// warm makes one request of each worker.
func (t *target) warm() error {
	for n, ask := range t.workers {
		if err := ask(n); err != nil {
			return fmt.Errorf("%s at %s: %w", t.kind, t.address, err)
		}
	}
	return nil
}

func load(seconds string, texts []string) ([]result, error) {
	length, err := time.ParseDuration(seconds + "s")
	if err != nil {
		return nil, err
	}
	targets := make([]*target, len(texts))
	for i, text := range texts {
		if targets[i], err = parse(text); targets[i] != nil {
			defer targets[i].close()
		}
		if err != nil {
			return nil, err
		}
		if err := targets[i].warm(); err != nil {
			return nil, err
		}
	}
	var all sync.WaitGroup
	results, failures := make([]result, len(targets)), make([]error, len(targets))
	for i, one := range targets {
		all.Add(1)
		go func() {
			defer all.Done()
			results[i], failures[i] = one.run(length)
		}()
	}
	all.Wait()
	return results, errors.Join(failures...)
}

// ask makes loads until standard input ends. One process makes all of them, as what tracers
// spend on a new one is not a request's.
func ask() error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 {
			return errors.New("SECONDS TARGET...")
		}
		results, err := load(words[0], words[1:])
		if err != nil {
			return err
		}
		line, _ := json.Marshal(results)
		fmt.Println(string(line))
	}
	return lines.Err()
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("load: ")
	var err error
	switch strings.Join(os.Args[1:], " ") {
	case "serve":
		err = serve()
	case "ask":
		err = ask()
	default:
		fmt.Fprintln(os.Stderr, "usage: load serve|ask")
		os.Exit(2)
	}
	if err != nil {
		log.Fatal(err)
	}
}

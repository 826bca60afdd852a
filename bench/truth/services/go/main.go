// SPDX-License-Identifier: Apache-2.0

// Truth is a front service of the linking benchmark; ../../workload.py says what one is asked.
// MODE says how it calls:
//
//	http      in the goroutine that serves the request
//	worker    in one of 16 goroutines that take calls from a channel
//	errgroup  in a goroutine a call, all at once
//	grpc      by gRPC to a process of its own (grpc-server), which calls as http does
//	sql       MySQL at the address in MYSQL, ID/K in the text of the statement
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// request is what one asks of us.
type request struct {
	id     string
	delays []string
}

// delay is that of call k in ms.
func (r request) delay(k int) string {
	if k < len(r.delays) {
		return r.delays[k]
	}
	return "0"
}

// front makes the calls of a request and returns when all are done.
type front func(context.Context, request) error

// call makes one call.
type call func(ctx context.Context, id string, k int, delay string) error

var calls = 1

var client = &http.Client{Transport: &http.Transport{
	MaxIdleConnsPerHost: 256,
	IdleConnTimeout:     time.Minute,
}}

func get(ctx context.Context, id string, k int, delay string) error {
	url := fmt.Sprintf("%s/u/%s/%d?d=%s", os.Getenv("UPSTREAM"), id, k, delay)
	upstream, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(upstream)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("upstream: %s", response.Status)
	}
	return nil
}

// inTurn makes one call after the other, in the goroutine that serves.
func inTurn(one call) front {
	return func(ctx context.Context, r request) error {
		for k := range calls {
			if err := one(ctx, r.id, k, r.delay(k)); err != nil {
				return err
			}
		}
		return nil
	}
}

// serve answers requests until a SIGTERM.
func serve(handle front) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/t/", func(w http.ResponseWriter, r *http.Request) {
		asked := request{
			id:     strings.TrimPrefix(r.URL.Path, "/t/"),
			delays: strings.Split(r.URL.Query().Get("d"), ","),
		}
		if err := handle(r.Context(), asked); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		io.WriteString(w, asked.id)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return http.Serve(listener, mux)
}

func run() error {
	if text := os.Getenv("CALLS"); text != "" {
		count, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		calls = count
	}
	switch mode := os.Getenv("MODE"); mode {
	case "", "http":
		return serve(inTurn(get))
	case "worker":
		return serve(inTurn(handOver(16, 0)))
	case "buffered":
		return serve(inTurn(handOver(4, 64)))
	case "errgroup":
		return serve(atOnce)
	case "grpc":
		one, err := dialServer()
		if err != nil {
			return err
		}
		return serve(inTurn(one))
	case "grpc-server":
		return serveGRPC()
	case "sql":
		one, err := openDatabase()
		if err != nil {
			return err
		}
		return serve(inTurn(one))
	default:
		return fmt.Errorf("no such MODE: %s", mode)
	}
}

func main() {
	log.SetFlags(0)
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ends
		os.Exit(0)
	}()
	log.Fatal(run())
}

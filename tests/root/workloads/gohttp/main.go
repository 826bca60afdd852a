// SPDX-License-Identifier: Apache-2.0

// Gohttp is a net/http server and a net/http client for the root tests.
//
//	gohttp serve                          prints its port; ends with its standard input
//	gohttp get URL REQUESTS CONNECTIONS   prints a line for each: path status sent received
//
// The server reads the body whole and answers status and size from ?status= and ?size=,
// chunked when ?size= is over 5000.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
)

func handle(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		log.Fatal(err)
	}
	status, _ := strconv.Atoi(r.URL.Query().Get("status"))
	size, _ := strconv.Atoi(r.URL.Query().Get("size"))
	if size <= 5000 {
		w.Header().Set("Content-Length", strconv.Itoa(size))
	}
	w.WriteHeader(status)
	if _, err := io.WriteString(w, strings.Repeat("g", size)); err != nil {
		log.Fatal(err)
	}
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() { log.Fatal(http.Serve(listener, http.HandlerFunc(handle))) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func get(url string, requests, connections int) {
	client := &http.Client{Transport: &http.Transport{
		MaxConnsPerHost:     connections,
		MaxIdleConnsPerHost: connections,
		DisableCompression:  true,
	}}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	work := make(chan int)
	var lock sync.Mutex
	var all sync.WaitGroup
	for i := 0; i < connections; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for n := range work {
				sent, size := n%7*300, n%11*900
				var body io.Reader
				method := http.MethodGet
				if sent > 0 {
					method, body = http.MethodPost, strings.NewReader(strings.Repeat("c", sent))
				}
				status := []int{200, 404, 503}[n%3]
				target := fmt.Sprintf("%s/%d?status=%d&size=%d", url, n, status, size)
				request, err := http.NewRequest(method, target, body)
				if err != nil {
					log.Fatal(err)
				}
				response, err := client.Do(request)
				if err != nil {
					log.Fatal(err)
				}
				received, err := io.Copy(io.Discard, response.Body)
				if err != nil {
					log.Fatal(err)
				}
				response.Body.Close()
				lock.Lock()
				fmt.Fprintln(out, request.URL.Path, method, response.StatusCode, sent, received)
				lock.Unlock()
			}
		}()
	}
	for n := 0; n < requests; n++ {
		work <- n
	}
	close(work)
	all.Wait()
}

func main() {
	log.SetFlags(0)
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		serve()
		return
	}
	if len(os.Args) != 5 || os.Args[1] != "get" {
		log.Fatal("see the top of main.go")
	}
	requests, _ := strconv.Atoi(os.Args[3])
	connections, _ := strconv.Atoi(os.Args[4])
	get(os.Args[2], requests, connections)
}

// SPDX-License-Identifier: Apache-2.0

// Echo is grpc-go's server and client of the service that ../README.md describes.
//
//	echo serve
//	echo call PORT CONNECTIONS
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const service = "wirespan.test.Echo"

// The names of the specification; codes.Code prints its own.
var names = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
	"ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
	"ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
	"UNAUTHENTICATED",
}

// codec passes messages on as they are.
type codec struct{}

func (codec) Name() string                       { return "proto" }
func (codec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (codec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }

func number(message []byte) int {
	n, err := strconv.Atoi(string(message))
	if err != nil {
		log.Fatal(err)
	}
	return n
}

type unary func(context.Context, []byte) ([]byte, error)

func method(name string, handle unary) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, ctx context.Context,
		decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var in []byte
		if err := decode(&in); err != nil {
			return nil, err
		}
		out, err := handle(ctx, in)
		return &out, err
	}}
}

func say(_ context.Context, in []byte) ([]byte, error) { return in, nil }

func fail(_ context.Context, in []byte) ([]byte, error) {
	return nil, status.Error(codes.Code(number(in)), "as asked for")
}

func slow(ctx context.Context, in []byte) ([]byte, error) {
	select {
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case <-time.After(time.Duration(number(in)) * time.Millisecond):
		return []byte("at last"), nil
	}
}

func send(stream grpc.ServerStream, message []byte) error { return stream.SendMsg(&message) }

func spread(_ any, stream grpc.ServerStream) error {
	var in []byte
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	for n := range number(in) {
		if err := send(stream, []byte(strconv.Itoa(n))); err != nil {
			return err
		}
	}
	return nil
}

func late(_ any, stream grpc.ServerStream) error {
	var in []byte
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	for _, word := range []string{"first", "second"} {
		if err := send(stream, []byte(word)); err != nil {
			return err
		}
	}
	return status.Error(codes.Code(number(in)), "as asked for, but late")
}

func gather(_ any, stream grpc.ServerStream) error {
	for n := 0; ; n++ {
		var in []byte
		err := stream.RecvMsg(&in)
		if err == io.EOF {
			return send(stream, []byte(strconv.Itoa(n)))
		} else if err != nil {
			return err
		}
	}
}

func chat(_ any, stream grpc.ServerStream) error {
	for {
		var in []byte
		err := stream.RecvMsg(&in)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := send(stream, in); err != nil {
			return err
		}
	}
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(codec{}), grpc.MaxRecvMsgSize(1<<30))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{method("Say", say), method("Fail", fail), method("Slow", slow)},
		Streams: []grpc.StreamDesc{
			{StreamName: "Spread", Handler: spread, ServerStreams: true},
			{StreamName: "Late", Handler: late, ServerStreams: true},
			{StreamName: "Gather", Handler: gather, ClientStreams: true},
			{StreamName: "Chat", Handler: chat, ServerStreams: true, ClientStreams: true},
		},
	}, nil)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(server.Serve(listener))
}

type done struct {
	Method   string `json:"method"`
	Status   string `json:"status"`
	Sent     int    `json:"sent"`
	Received int    `json:"received"`
}

// exchange makes call number n of a kind.
func exchange(conn *grpc.ClientConn, kind string, n, size int) (done, error) {
	name, count, message := "Say", 1, bytes.Repeat([]byte("x"), size)
	timeout := 30 * time.Second
	switch kind {
	case "server":
		name, message = "Spread", []byte(strconv.Itoa(n%5))
	case "client":
		name, count = "Gather", n%5
	case "bidi":
		name, count = "Chat", n%5
	case "fail":
		name, message = "Fail", []byte(strconv.Itoa(1+n%16))
	case "late":
		name, message = "Late", []byte(strconv.Itoa(1+n%16))
	case "unknown":
		name = "Unknown"
	case "slow":
		name, message = "Slow", []byte("300")
	case "deadline":
		name, message, timeout = "Slow", []byte("10000"), 100*time.Millisecond
	case "cancel":
		name = "Chat"
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	result := done{Method: service + "/" + name}
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	stream, err := conn.NewStream(ctx, desc, "/"+result.Method)
	if err != nil {
		return result, err
	}
	for range count {
		// io.EOF: the call is over already, and RecvMsg says how.
		if err := stream.SendMsg(&message); err == io.EOF {
			break
		} else if err != nil {
			return result, err
		}
		result.Sent++
	}
	if kind != "cancel" {
		if err := stream.CloseSend(); err != nil {
			return result, err
		}
	}
	for {
		var in []byte
		err := stream.RecvMsg(&in)
		if err == io.EOF {
			err = nil
		} else if err == nil {
			result.Received++
			if kind == "cancel" {
				cancel()
			}
			continue
		}
		result.Status = names[status.Code(err)]
		return result, nil
	}
}

func dial(port string, connections int) []*grpc.ClientConn {
	conns := make([]*grpc.ClientConn, connections)
	for i := range conns {
		conn, err := grpc.NewClient("127.0.0.1:"+port,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(1<<30)))
		if err != nil {
			log.Fatal(err)
		}
		conns[i] = conn
	}
	return conns
}

func batch(conns []*grpc.ClientConn, kind string, calls, concurrency, size int) {
	results, failures := make([]done, calls), make([]error, calls)
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range concurrency {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for n := range numbers {
				results[n], failures[n] = exchange(conns[n%len(conns)], kind, n, size)
			}
		}()
	}
	for n := range calls {
		numbers <- n
	}
	close(numbers)
	workers.Wait()
	if err := errors.Join(failures...); err != nil {
		log.Fatal(err)
	}
	for _, result := range results {
		line, _ := json.Marshal(result)
		fmt.Println(string(line))
	}
	fmt.Println()
}

func call(port string, connections int) {
	conns := dial(port, connections)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var kind string
		var calls, concurrency, size int
		if _, err := fmt.Sscan(lines.Text(), &kind, &calls, &concurrency, &size); err != nil {
			log.Fatal(err)
		}
		if kind == "reconnect" {
			for _, conn := range conns {
				conn.Close()
			}
			conns = dial(port, connections)
		}
		batch(conns, kind, calls, concurrency, size)
	}
	for _, conn := range conns {
		conn.Close()
	}
}

func main() {
	if os.Args[1] == "serve" {
		serve()
	}
	connections, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	call(os.Args[2], connections)
}

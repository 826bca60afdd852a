// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const service = "wirespan.truth.Calls"

// codec passes messages on as they are.
type codec struct{}

func (codec) Name() string                       { return "proto" }
func (codec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (codec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }

// answer makes the call that the message "ID K DELAY" asks for.
func answer(ctx context.Context, message []byte) ([]byte, error) {
	words := strings.Fields(string(message))
	if len(words) != 3 {
		return nil, status.Error(codes.InvalidArgument, "ID K DELAY")
	}
	k, err := strconv.Atoi(words[1])
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := serverCall(ctx, words[0], k, words[2]); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return message, nil
}

// serverCall is what the gRPC server does for a call of its client.
var serverCall call = get

// serveGRPC prints its port; it also ends when the process that started it does.
func serveGRPC() error {
	if os.Getenv("MYSQL") != "" {
		one, err := openDatabase()
		if err != nil {
			return err
		}
		serverCall = one
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodec(codec{}))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(_ any, ctx context.Context,
			decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in []byte
			if err := decode(&in); err != nil {
				return nil, err
			}
			out, err := answer(ctx, in)
			return &out, err
		}}},
	}, nil)
	fmt.Println(listener.Addr())
	return server.Serve(listener)
}

// dialServer starts the server and returns a call that it makes for us.
func dialServer() (call, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), "MODE=grpc-server", "PORT=0")
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	output, err := child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := child.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the gRPC server: %w", err)
	}
	conn, err := grpc.NewClient(strings.TrimSpace(line),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, id string, k int, delay string) error {
		in, out := fmt.Appendf(nil, "%s %d %s", id, k, delay), []byte(nil)
		return conn.Invoke(ctx, "/"+service+"/Call", &in, &out)
	}, nil
}

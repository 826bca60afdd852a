// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
)

// openHTTP makes workers with a connection each. They write requests themselves: net/http's
// client takes several times the CPU time, which the services here have more use for.
func openHTTP(p *pool, address string, count int) error {
	for range count {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		p.closers = append(p.closers, conn)
		answers := bufio.NewReader(conn)
		p.workers = append(p.workers, func(n int) error {
			_, err := fmt.Fprintf(conn, "GET /items/%d HTTP/1.1\r\nHost: %s\r\n\r\n", n, address)
			if err != nil {
				return err
			}
			answer, err := http.ReadResponse(answers, nil)
			if err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, answer.Body); err != nil {
				return err
			}
			if answer.StatusCode != http.StatusOK {
				return fmt.Errorf("GET /items/%d: %s", n, answer.Status)
			}
			return nil
		})
	}
	return nil
}

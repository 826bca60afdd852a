// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"

	_ "github.com/go-sql-driver/mysql"
)

// openMySQL makes workers with a connection each, which select one row by its key.
func openMySQL(p *pool, address string, count int) error {
	db, err := sql.Open("mysql", "bench@tcp("+address+")/bench")
	if err != nil {
		return err
	}
	p.closers = append(p.closers, db)
	for range count {
		conn, err := db.Conn(context.Background())
		if err != nil {
			return err
		}
		// Before the database: it waits for connections that are in use.
		p.closers = append([]io.Closer{conn}, p.closers...)
		p.workers = append(p.workers, func(n int) error {
			var name string
			query := fmt.Sprintf("SELECT name FROM items WHERE id = %d", n)
			err := conn.QueryRowContext(context.Background(), query).Scan(&name)
			if err == nil && name != fmt.Sprintf("item %d", n) {
				return fmt.Errorf("item %d is %q", n, name)
			}
			return err
		})
	}
	return nil
}

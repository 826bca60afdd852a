// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strconv"
	"time"

	_ "github.com/go-sql-driver/mysql"
)

// openDatabase returns a call to MySQL at the data source name in MYSQL. ID/K stands in the
// place of an identifier, as tracers mask literals and may drop comments.
func openDatabase() (call, error) {
	db, err := sql.Open("mysql", os.Getenv("MYSQL"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(128)
	db.SetMaxIdleConns(128)
	db.SetConnMaxIdleTime(time.Minute)
	return func(ctx context.Context, id string, k int, delay string) error {
		ms, err := strconv.ParseFloat(delay, 64)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("SELECT SLEEP(%.6f) AS `/u/%s/%d`", ms/1000, id, k)
		var zero int
		return db.QueryRowContext(ctx, text).Scan(&zero)
	}, nil
}

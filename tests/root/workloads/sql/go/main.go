// go-sql-driver: TABLE FILE DSN, statements as a JSON list on standard input.
// Prints a JSON list of steps: verb, returned rows, affected rows, error.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
)

type step [4]any

var steps []step

func verb(text string) string { return strings.ToUpper(strings.Fields(text)[0]) }

// Take note of an error; any but the server's ends the program.
func failed(text string, err error) bool {
	var said *mysql.MySQLError
	if errors.As(err, &said) {
		steps = append(steps, step{verb(text), nil, nil, strconv.Itoa(int(said.Number))})
		return true
	}
	check(err)
	return false
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func query(conn *sql.Conn, text string, args ...any) {
	rows, err := conn.QueryContext(context.Background(), text, args...)
	if failed(text, err) {
		return
	}
	count(text, rows)
}

func count(text string, rows *sql.Rows) {
	n := 0
	for more := true; more; more = rows.NextResultSet() {
		for rows.Next() {
			n++
		}
	}
	check(rows.Err())
	check(rows.Close())
	steps = append(steps, step{verb(text), n, nil, nil})
}

func exec(conn *sql.Conn, text string, args ...any) {
	result, err := conn.ExecContext(context.Background(), text, args...)
	if failed(text, err) {
		return
	}
	affected, err := result.RowsAffected()
	check(err)
	switch verb(text) {
	case "INSERT", "UPDATE", "DELETE", "LOAD":
		steps = append(steps, step{verb(text), nil, affected, nil})
	default:
		steps = append(steps, step{verb(text), nil, nil, nil})
	}
}

func main() {
	table, file, dsn := os.Args[1], os.Args[2], os.Args[3]
	var statements []string
	check(json.NewDecoder(os.Stdin).Decode(&statements))
	db, err := sql.Open("mysql", dsn)
	check(err)
	db.SetMaxOpenConns(1)
	mysql.RegisterLocalFile(file)
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	check(err)
	check(conn.PingContext(ctx))
	for _, text := range statements {
		if verb(text) == "SELECT" {
			query(conn, text)
		} else {
			exec(conn, text)
		}
	}
	text := fmt.Sprintf("SELECT id, name FROM %s WHERE id = ?", table)
	prepared, err := conn.PrepareContext(ctx, text)
	check(err)
	for _, id := range []int{1, 2, 99} {
		rows, err := prepared.Query(id)
		check(err)
		count(text, rows)
	}
	check(prepared.Close())
	// An argument makes it a statement that is prepared, executed once and closed.
	exec(conn, fmt.Sprintf("INSERT INTO %s (id, name) VALUES (?, ?)", table), 70, "Päul")
	query(conn, "SELECT n FROM ten WHERE n < 4; SELECT n AS inner_n FROM ten WHERE n < 2")
	query(conn, "CALL two()")
	exec(conn, fmt.Sprintf("LOAD DATA LOCAL INFILE '%s' INTO TABLE %s (id, name)", file, table))
	check(conn.Close())
	check(db.Close())
	check(json.NewEncoder(os.Stdout).Encode(steps))
}

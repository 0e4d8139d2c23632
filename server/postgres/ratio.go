package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
)

// IngestRatio compares what a shipper does with a bare COPY.
type IngestRatio struct {
	Rows   int     // stored in each way
	Raw    float64 // rows a second of binary COPY, encoded beforehand, into a table with the trail's columns, indexes and partitions and no triggers
	Ingest float64 // rows a second of Storage.Ingest
	Ratio  float64 // median over rounds of Ingest/Raw, each round measuring one straight after the other
}

// ratioBatch is what a shipper that is behind puts into a transaction.
const ratioBatch = 1000

// MeasureIngest measures in a database of its own, which it makes and drops again, in rounds of ten batches each way.
// adminDSN logs in as a superuser.
func MeasureIngest(ctx context.Context, adminDSN string, rounds int) (measured IngestRatio, err error) {
	err = onOwnDatabase(ctx, adminDSN, func(dsn string) error {
		measured, err = measureIngest(ctx, dsn, rounds)
		return err
	})
	return measured, err
}

// onOwnDatabase runs work on a migrated database that it makes and drops again.
func onOwnDatabase(ctx context.Context, adminDSN string, work func(dsn string) error) (err error) {
	admin, err := pgx.Connect(ctx, adminDSN)
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost
	name := "chartkeep_measured_" + hex.EncodeToString(random(4))
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return bare("making a database", err)
	}
	defer func() {
		if _, drop := admin.Exec(context.WithoutCancel(ctx), "DROP DATABASE "+name+" WITH (FORCE)"); err == nil && drop != nil {
			err = bare("dropping the database", drop)
		}
	}()
	dsn, err := url.Parse(adminDSN)
	if err != nil {
		return fmt.Errorf("parsing database URL: malformed")
	}
	dsn.Path = "/" + name
	if err := Migrate(ctx, dsn.String(), ""); err != nil {
		return err
	}
	return work(dsn.String())
}

func measureIngest(ctx context.Context, dsn string, rounds int) (IngestRatio, error) {
	db, err := Open(ctx, Config{DSN: dsn})
	if err != nil {
		return IngestRatio{}, err
	}
	defer db.Close()
	raw, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return IngestRatio{}, fmt.Errorf("connecting: %w", err)
	}
	defer raw.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost
	if _, err := raw.Exec(ctx, `DO $$ BEGIN
		CREATE TABLE raw (LIKE audit_event INCLUDING ALL) PARTITION BY RANGE (part_ts);
		FOR month IN -1..1 LOOP
			EXECUTE format('CREATE TABLE raw_%s PARTITION OF raw FOR VALUES FROM (%L) TO (%L)', month + 1,
				date_trunc('month', now()) + make_interval(months => month), date_trunc('month', now()) + make_interval(months => month + 1));
		END LOOP; END $$`); err != nil {
		return IngestRatio{}, bare("making the bare table", err)
	}
	var rawTook, ingestTook time.Duration
	var ratios []float64
	result := IngestRatio{}
	s := newPopulation().stream(uint64(rounds), 0, time.Now().UTC().Truncate(time.Microsecond), time.Millisecond)
	for round := range rounds + 1 {
		batches := make([]audit.Batch, 10)
		encoded := make([]copyData, 10)
		for i := range batches {
			if batches[i], err = s.next(ratioBatch); err != nil {
				return IngestRatio{}, err
			}
			encoded[i].begin()
			for j := range batches[i].Rows {
				encoded[i].row(batches[i].Stream, &batches[i].Rows[j])
			}
			encoded[i].end()
		}
		began := time.Now()
		for _, data := range encoded {
			if err := pgx.BeginFunc(ctx, raw, func(tx pgx.Tx) error {
				_, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(data), `COPY raw (`+strings.Join(trailColumns, ", ")+`) FROM STDIN (FORMAT binary)`)
				return err
			}); err != nil {
				return IngestRatio{}, bare("copying", err)
			}
		}
		one := time.Since(began)
		began = time.Now()
		for _, b := range batches {
			if err := db.Audit().Ingest(ctx, b); err != nil {
				return IngestRatio{}, err
			}
		}
		other := time.Since(began)
		if round == 0 {
			continue // caches are cold, plans are made
		}
		result.Rows += len(batches) * ratioBatch
		rawTook, ingestTook = rawTook+one, ingestTook+other
		ratios = append(ratios, one.Seconds()/other.Seconds())
	}
	slices.Sort(ratios)
	result.Raw, result.Ingest = float64(result.Rows)/rawTook.Seconds(), float64(result.Rows)/ingestTook.Seconds()
	result.Ratio = ratios[len(ratios)/2]
	return result, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

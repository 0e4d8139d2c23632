package postgres

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/demo"
)

// wire is a network between the program and PostgreSQL that fails on command.
type wire struct {
	target string // of connections from now on
	fault  atomic.Int32
	mu     sync.Mutex
	ln     net.Listener
	addr   string
	conns  map[net.Conn]bool
}

// Faults of a wire.
const (
	sound       int32 = iota
	blackHole         // takes every byte and passes none on
	loseCommits       // passes COMMIT on, and breaks the connection instead of passing its answer back
)

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	w := &wire{target: target, conns: map[net.Conn]bool{}, addr: "127.0.0.1:0"}
	w.plug(t)
	t.Cleanup(w.unplug)
	return w
}

// plug makes the wire take connections; unplug makes it refuse them and breaks those that are.
func (w *wire) plug(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.ln, w.addr = ln, ln.Addr().String()
	w.mu.Unlock()
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			go w.join(near)
		}
	}()
}

func (w *wire) unplug() {
	w.mu.Lock()
	w.ln.Close()
	w.mu.Unlock()
	w.breakAll()
}

func (w *wire) breakAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		c.Close()
	}
	clear(w.conns)
}

func (w *wire) join(near net.Conn) {
	w.mu.Lock()
	target := w.target
	w.conns[near] = true
	w.mu.Unlock()
	far, err := net.Dial("tcp", target)
	if err != nil {
		near.Close()
		return
	}
	w.mu.Lock()
	w.conns[far] = true
	w.mu.Unlock()
	var committing atomic.Bool
	pass := func(to, from net.Conn, toServer bool) {
		defer near.Close()
		defer far.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			switch w.fault.Load() {
			case blackHole:
				continue
			case loseCommits:
				if toServer && bytes.Contains(b[:n], []byte("commit\x00")) {
					committing.Store(true)
				} else if !toServer && committing.Load() {
					return
				}
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
	}
	go pass(far, near, true)
	pass(near, far, false)
}

// TestOutages plays experiment 3 at the level of this package: a loaded log whose PostgreSQL goes away in every way it can, and comes
// back. Whatever was acknowledged is stored once, in order, poison aside.
func TestOutages(t *testing.T) {
	if cluster == nil {
		t.Skip("no PostgreSQL binaries on this machine")
	}
	dir := t.TempDir()
	own, err := demo.StartCluster(t.Context(), demo.ClusterConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Stop() }()
	if err := Migrate(t.Context(), own.DSN("chartkeep"), password); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(own.DSN("chartkeep"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(t, u.Host)
	u.Host, u.User = w.addr, url.UserPassword("chartkeep", password)
	db, err := Open(t.Context(), Config{DSN: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.trailStorage.patience = 2 * time.Second
	log, err := audit.Open(audit.Config{Dir: t.TempDir(), Storage: db.Audit(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	shipping, stopShipping := context.WithCancel(t.Context())
	loading, stopLoading := context.WithCancel(t.Context())
	var load, wg sync.WaitGroup
	defer func() {
		stopLoading()
		stopShipping()
		load.Wait()
		wg.Wait()
	}()
	wg.Go(func() { _ = log.Run(shipping) })

	// The load: four callers who wait for a write of the journal each, never for PostgreSQL. Now and then an event is poison.
	var acked, poisoned atomic.Int64
	var slowest atomic.Int64
	for caller := range 4 {
		load.Go(func() {
			for i := 0; loading.Err() == nil; i++ {
				e := &audit.Event{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: "p", RequestID: fmt.Sprintf("load-%d-%d", caller, i),
					Agent: audit.Agent{User: "dr-rivera", Client: strings.Repeat("x", i%700)}}
				poison := i%103 == 100
				if poison {
					e.Recorded = time.Date(-100_000, 1, 1, 0, 0, 0, 0, time.UTC)
				}
				began := time.Now()
				if _, err := log.Record(t.Context(), audit.Process, e); err != nil {
					if loading.Err() == nil {
						t.Errorf("recording: %v", err)
					}
					return
				}
				slowest.Store(max(slowest.Load(), int64(time.Since(began))))
				acked.Add(1)
				if poison {
					poisoned.Add(1)
				}
				time.Sleep(4 * time.Millisecond)
			}
		})
	}
	admin := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), own.DSN("chartkeep"))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	time.Sleep(300 * time.Millisecond)
	for _, outage := range []struct {
		name string
		play func(t *testing.T)
	}{
		{"connections refused", func(t *testing.T) {
			w.unplug()
			time.Sleep(time.Second)
			w.plug(t)
		}},
		{"packets swallowed", func(*testing.T) {
			w.fault.Store(blackHole)
			time.Sleep(3 * time.Second)
			w.fault.Store(sound)
		}},
		{"answers to COMMIT lost", func(*testing.T) {
			w.fault.Store(loseCommits)
			time.Sleep(2 * time.Second)
			w.fault.Store(sound)
		}},
		{"connections cut at any point", func(*testing.T) {
			for range 60 {
				time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
				w.breakAll()
			}
		}},
		{"backends killed at any point", func(t *testing.T) {
			conn := admin()
			defer conn.Close(t.Context())
			for range 60 {
				time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
				must(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chartkeep_audit_writer'`)
			}
		}},
		{"PostgreSQL stopped at once and started again", func(t *testing.T) {
			signalPostmaster(t, dir, syscall.SIGQUIT)
			time.Sleep(500 * time.Millisecond)
			_ = own.Stop()
			if own, err = demo.StartCluster(t.Context(), demo.ClusterConfig{Dir: dir}); err != nil {
				t.Fatal(err)
			}
			again, err := url.Parse(own.DSN("chartkeep"))
			if err != nil {
				t.Fatal(err)
			}
			w.mu.Lock()
			w.target = again.Host
			w.mu.Unlock()
		}},
	} {
		t.Run(outage.name, func(t *testing.T) {
			before := log.Stats().Shipped
			outage.play(t)
			began := time.Now()
			for stats := log.Stats(); stats.Lag > time.Second || stats.Shipped == before; stats = log.Stats() {
				if time.Since(began) > 90*time.Second {
					t.Fatalf("the trail does not catch up: %d events behind, %v", stats.Pending, stats.Lag)
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("caught up after %v, %d events shipped", time.Since(began).Round(time.Millisecond), log.Stats().Shipped-before)
		})
	}
	stopLoading()
	load.Wait()
	if err := log.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	stats := log.Stats()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	conn := admin()
	defer conn.Close(t.Context())
	if n := count(t, conn, `SELECT count(DISTINCT request_id) FROM audit_event WHERE request_id LIKE 'load-%'`); int64(n) < acked.Load()-poisoned.Load() || int64(n) > acked.Load()-poisoned.Load()+8 {
		t.Errorf("%d events are stored, %d were acknowledged, %d of them poison", n, acked.Load(), poisoned.Load())
	}
	if n := count(t, conn, `SELECT count(*) FROM audit_quarantine`); int64(n) < poisoned.Load() || poisoned.Load() == 0 {
		t.Errorf("%d rows in the quarantine, %d were poison", n, poisoned.Load())
	}
	if stats.Quarantined == 0 {
		t.Error("no quarantined row was counted")
	}
	if n := count(t, conn, `SELECT count(*) FROM (SELECT stream FROM (SELECT stream, seq FROM audit_event UNION ALL SELECT stream, seq FROM audit_quarantine) r
		GROUP BY stream HAVING count(*) <> count(DISTINCT seq) OR count(*) <> max(seq) + 1) broken`); n != 0 {
		t.Errorf("%d streams have a record twice, or lack one", n)
	}
	if n := count(t, conn, `SELECT count(*) FROM audit_batch b WHERE (SELECT count(*) FROM (SELECT seq FROM audit_event e WHERE e.stream = b.stream AND e.seq BETWEEN b.first_seq AND b.last_seq
		UNION ALL SELECT seq FROM audit_quarantine q WHERE q.stream = b.stream AND q.seq BETWEEN b.first_seq AND b.last_seq) r) <> b.last_seq - b.first_seq + 1`); n != 0 {
		t.Errorf("%d batches lack rows", n)
	}
	t.Logf("%d events, %d of them poison, slowest hand-over %v", acked.Load(), poisoned.Load(), time.Duration(slowest.Load()))
}

// signalPostmaster signals the PostgreSQL of a cluster's directory.
func signalPostmaster(t *testing.T, dir string, s syscall.Signal) {
	t.Helper()
	var pid int
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "postmaster.pid" {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			first, _, _ := strings.Cut(string(b), "\n")
			pid, err = strconv.Atoi(first)
			return err
		}
		return nil
	})
	if link, lerr := os.Readlink(filepath.Join(dir, "postgres")); pid == 0 && lerr == nil {
		if b, rerr := os.ReadFile(filepath.Join(link, "postmaster.pid")); rerr == nil {
			first, _, _ := strings.Cut(string(b), "\n")
			pid, err = strconv.Atoi(first)
		}
	}
	if err != nil || pid <= 1 {
		t.Fatalf("no postmaster in %s (%v)", dir, err)
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// TestCatchUp lets a journal fill while nothing ships, and measures how fast it empties.
func TestCatchUp(t *testing.T) {
	db, _ := open(t)
	log, err := audit.Open(audit.Config{Dir: t.TempDir(), Storage: db.Audit(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	const events = 20_000
	for i := 0; i < events; i += 100 {
		page := make([]*audit.Event, 100)
		for j := range page {
			page[j] = &audit.Event{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: fmt.Sprint("p-", (i+j)%997), RequestID: fmt.Sprint("r-", i+j),
				Agent: audit.Agent{User: "dr-rivera", Client: "app", Roles: []string{"clinician"}}, Decision: audit.Decision{Allowed: true, Rule: "clinician:*:r:treatment", Reason: "allowed"}}
		}
		if _, err := log.Record(t.Context(), audit.Process, page...); err != nil {
			t.Fatal(err)
		}
	}
	running, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	began := time.Now()
	wg.Go(func() { _ = log.Run(running) })
	if err := log.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	rate := events / time.Since(began).Seconds()
	stop()
	wg.Wait()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	// An hour at 1,000 events a second, caught up in ten minutes while as many come in, asks for 7,000.
	t.Logf("caught up at %.0f events a second", rate)
	if rate < 2500 {
		t.Errorf("%.0f events a second on a busy machine", rate)
	}
}

package rest

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

// Two cache lines a set, and no more memory than is promised, whoever asks: a million addresses and a million subjects leave it as it is.
func TestBucketsHoldTheirSize(t *testing.T) {
	if size := unsafe.Sizeof(bucketSet{}); size > 128 {
		t.Errorf("a set takes %d bytes", size)
	}
	l := newLimiter(Limits{IP: Rate{1, 5}, Client: Rate{1, 5}, Subject: Rate{1, 5}, Failed: Rate{1, 5}})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for n := range 1_000_000 {
		address := source(fmt.Sprintf("%d.%d.%d.%d", 1+n>>24, n>>16&255, n>>8&255, n&255))
		l.ip.take(address, 1, time.Duration(n))
		l.failed.charge(network(address), 5, time.Duration(n))
		l.subject.take(fmt.Sprint("subject-", n), 1, time.Duration(n))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<10 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	runtime.KeepAlive(l)
}

// A bucket lets through its burst and its rate, never more, in any order of requests and costs, and what it promises (a wait) holds.
func TestBucketsKeepTheirRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rate{PerSecond: float64(rapid.IntRange(1, 1000).Draw(t, "rate")), Burst: rapid.IntRange(1, 200).Draw(t, "burst")}
		b := newBuckets(r)
		var now time.Duration
		passed := 0
		for range rapid.IntRange(1, 100).Draw(t, "requests") {
			now += time.Duration(rapid.IntRange(0, int(50*time.Millisecond)).Draw(t, "gap"))
			cost := rapid.IntRange(1, 20).Draw(t, "cost")
			l, ok := b.take("somebody", cost, now)
			if ok {
				passed += min(cost, r.Burst)
			} else if _, early := b.take("somebody", cost, now+l.wait-1); early {
				t.Fatalf("a request passed before the wait of %v was over", l.wait)
			} else if back, ok := b.take("somebody", cost, now+l.wait); !ok {
				t.Fatalf("after the wait of %v there were %d tokens", l.wait, back.left)
			} else {
				now += l.wait
				passed += min(cost, r.Burst)
			}
			if most := float64(r.Burst) + now.Seconds()*r.PerSecond; float64(passed) > most+0.001 {
				t.Fatalf("%d tokens within %v at %v", passed, now, r)
			}
		}
	})
}

// Requests that are refused cost nothing, and one key's bucket is not another's.
func TestBucketsAreApart(t *testing.T) {
	b := newBuckets(Rate{1, 10})
	for range 1000 {
		b.take("noisy", 1, 0)
	}
	if l, ok := b.take("quiet", 10, 0); !ok || l.left != 0 {
		t.Errorf("another's bucket: %+v, %v", l, ok)
	}
	if l, ok := b.take("noisy", 1, time.Second); !ok || l.left != 0 {
		t.Errorf("what was refused was charged: %+v, %v", l, ok)
	}
	if _, ok := b.look("noisy", time.Second); ok {
		t.Error("there is a token in an empty bucket")
	}
}

// A flood from more sources than a set holds neither takes the place of who owes most nor locks out who comes new.
func TestBucketsUnderFlood(t *testing.T) {
	b := newBuckets(Rate{1, 100})
	b.charge("abuser", 100, 0)
	refused := 0
	for n := range 200_000 {
		if _, ok := b.take(fmt.Sprint("flood-", n), 1, time.Duration(n)); !ok {
			refused++
		}
	}
	if refused > 0 {
		t.Errorf("%d of the newcomers were refused for others", refused)
	}
	if _, ok := b.take("abuser", 1, time.Millisecond); ok {
		t.Error("the flood made the abuser's debt forgotten")
	}
}

func TestBucketsAtOnce(t *testing.T) {
	b := newBuckets(Rate{1, 1000})
	var passed [8]int
	var all sync.WaitGroup
	for g := range passed {
		all.Go(func() {
			for range 1000 {
				if _, ok := b.take("shared", 1, 0); ok {
					passed[g]++
				}
			}
		})
	}
	all.Wait()
	total := 0
	for _, n := range passed {
		total += n
	}
	if total != 1000 {
		t.Errorf("%d of 8,000 passed a burst of 1,000", total)
	}
}

func TestRateText(t *testing.T) {
	for text, want := range map[string]Rate{"20/100": {20, 100}, "0.5/3": {0.5, 3}, "1e5/1000000": {1e5, 1e6}, "off": {}} {
		var r Rate
		if err := r.UnmarshalText([]byte(text)); err != nil || r != want {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
		var again Rate
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Errorf("%q is written as %q and read as %+v, %v", text, r, again, err)
		}
	}
	for _, text := range []string{"", "20", "/", "20/", "/100", "-1/5", "0/5", "20/0", "20/1.5", "NaN/5", "Inf/5", "20/100/3", "1e300/5", "off/5", "0.01/1000000000"} {
		var r Rate
		if err := r.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %+v", text, r)
		}
	}
}

// Failures of a network are counted together; an IPv6 host, which has a /64 to itself, does not get as many buckets as it has addresses.
func TestSources(t *testing.T) {
	for _, c := range []struct{ address, source, network string }{
		{"192.0.2.7", "192.0.2.7", "192.0.2.0/24"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "2001:db8:1:2::/64"},
		{"2001:db8:1:2::1", "2001:db8:1:2::/64", "2001:db8:1:2::/64"},
		{"fe80::1%eth0", "fe80::/64", "fe80::/64"},
		{"::1", "::/64", "::/64"},
	} {
		if s := source(c.address); s != c.source || network(s) != c.network {
			t.Errorf("%s: source %s, network %s", c.address, s, network(s))
		}
	}
}

func FuzzSource(f *testing.F) {
	f.Add("192.0.2.7")
	f.Add("::ffff:192.0.2.7")
	f.Fuzz(func(t *testing.T, address string) {
		s := source(address)
		if network(network(s)) != network(s) || strings.Contains(s, "%") && s != address {
			t.Errorf("%q: %q, %q", address, s, network(s))
		}
	})
}

// Asking allocates nothing: it stands before everything else.
func TestBucketsDoNotAllocate(t *testing.T) {
	b := newBuckets(Rate{1e9, 1e9})
	key := "192.0.2.7"
	if n := testing.AllocsPerRun(1000, func() { b.take(key, 1, time.Second); b.look(key, time.Second) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTake(b *testing.B) {
	table := newBuckets(Rate{1e9, 1e9})
	b.ReportAllocs()
	for b.Loop() {
		table.take("192.0.2.7", 1, time.Second)
	}
}

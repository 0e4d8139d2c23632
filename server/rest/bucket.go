package rest

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Rate is a token bucket: PerSecond tokens flow in until Burst of them are there, and a request takes one or, when it is much
// work, several. The zero Rate limits nothing.
type Rate struct {
	PerSecond float64
	Burst     int
}

// longestFill bounds how long a bucket takes to fill: its times are far from where they would overflow.
const longestFill = 1000 * time.Hour

// UnmarshalText reads "RATE/BURST", tokens a second and tokens at most, or "off".
func (r *Rate) UnmarshalText(text []byte) error {
	if string(text) == "off" {
		*r = Rate{}
		return nil
	}
	rate, burst, ok := strings.Cut(string(text), "/")
	perSecond, err := strconv.ParseFloat(rate, 64)
	if !ok || err != nil || !(perSecond >= 0.01 && perSecond <= 1e9) {
		return errors.New("a rate is RATE/BURST, tokens a second and tokens at most (such as 20/100), or off")
	}
	most, err := strconv.Atoi(burst)
	if err != nil || most < 1 || most > 1e9 {
		return errors.New("a rate is RATE/BURST, and BURST a whole number of 1 or more")
	}
	if float64(most)/perSecond > longestFill.Seconds() {
		return fmt.Errorf("a rate is RATE/BURST, and an empty bucket fills within %v", longestFill)
	}
	*r = Rate{perSecond, most}
	return nil
}

// String is what UnmarshalText reads.
func (r Rate) String() string {
	if r.off() {
		return "off"
	}
	return strconv.FormatFloat(r.PerSecond, 'g', -1, 64) + "/" + strconv.Itoa(r.Burst)
}

func (r Rate) off() bool { return r.PerSecond <= 0 || r.Burst < 1 }

const (
	bucketSets = 8192 // a power of two
	bucketWays = 7    // with the mutex, two cache lines a set
)

// buckets are one bucket for each of any number of keys, in a table of fixed size (1 MiB): 57,344 buckets in sets of seven. A key is
// found by a keyed hash of 64 bits, so that nobody outside can aim at another's set. A key that comes new into a full set
// takes the place of the bucket that is nearest to full. Of one that is full nothing is lost by that; one that is not is
// forgiven what it owes, so a flood from more sources than the table holds is let off lightly by it, and never locks out
// anybody else. Who owes most stays longest.
type buckets struct {
	rate  Rate
	each  time.Duration // in which one token flows in
	whole time.Duration // in which an empty bucket fills
	seed  maphash.Seed
	sets  []bucketSet
}

type bucketSet struct {
	mu   sync.Mutex
	ways [bucketWays]bucket
}

// bucket is the state of the generic cell rate algorithm (ITU-T I.371): the moment, on the limiter's clock, at which it will be
// full. One whose moment has passed is full.
type bucket struct {
	key  uint64 // 0: unused
	full time.Duration
}

// newBuckets returns nil, which limits nothing, for a rate that is off.
func newBuckets(r Rate) *buckets {
	if r.off() {
		return nil
	}
	each := time.Duration(float64(time.Second) / r.PerSecond)
	return &buckets{rate: r, each: max(each, 1), whole: max(each, 1) * time.Duration(r.Burst), seed: maphash.MakeSeed(), sets: make([]bucketSet, bucketSets)}
}

// level is how a bucket stands.
type level struct {
	left int           // whole tokens
	wait time.Duration // until there are as many as were asked for; 0 when there were
	fill time.Duration // until it is full
}

// take takes tokens, all or none; it asks for no more than the bucket holds at most.
func (b *buckets) take(key string, tokens int, now time.Duration) (level, bool) {
	return b.change(key, tokens, now, func(full, cost time.Duration) (time.Duration, bool) {
		if full+cost-now > b.whole {
			return full, false
		}
		return full + cost, true
	})
}

// charge takes tokens that may not be there: the bucket is empty then.
func (b *buckets) charge(key string, tokens int, now time.Duration) level {
	l, _ := b.change(key, tokens, now, func(full, cost time.Duration) (time.Duration, bool) {
		return min(full+cost, now+b.whole), true
	})
	return l
}

// look takes nothing; it reports whether there is a token.
func (b *buckets) look(key string, now time.Duration) (level, bool) {
	return b.change(key, 1, now, func(full, cost time.Duration) (time.Duration, bool) { return full, full+cost-now <= b.whole })
}

func (b *buckets) change(key string, tokens int, now time.Duration, f func(full, cost time.Duration) (time.Duration, bool)) (level, bool) {
	hash := maphash.String(b.seed, key)
	if hash == 0 {
		hash = 1
	}
	cost := b.each * time.Duration(min(tokens, b.rate.Burst))
	set := &b.sets[hash%bucketSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	found, fullest := -1, 0
	for i := range set.ways {
		if set.ways[i].key == hash {
			found = i
			break
		}
		if set.ways[i].full < set.ways[fullest].full {
			fullest = i
		}
	}
	full := now
	if found >= 0 {
		full = max(full, set.ways[found].full)
	}
	after, ok := f(full, cost)
	if found < 0 && after > now { // one that is full need not be kept
		found = fullest
	}
	if found >= 0 {
		set.ways[found] = bucket{hash, after}
	}
	l := level{left: int((b.whole - (after - now)) / b.each), fill: after - now}
	if !ok {
		l.wait = after + cost - now - b.whole
	}
	return l, ok
}

// seconds rounds up: who comes back after that many finds what was promised.
func seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

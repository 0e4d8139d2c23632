package phi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// IndexState is where a generation of index keys is in its life.
type IndexState string

const (
	IndexReading  IndexState = "reading"  // lookups ask for its tokens; nothing is minted under it yet
	IndexActive   IndexState = "active"   // what is new is minted under it; there is exactly one
	IndexRetiring IndexState = "retiring" // its tokens are being replaced; lookups still ask for them
)

// IndexGeneration is a set of index keys, one for each kind of token, with the rules by which values become tokens. Ids count
// up and are never used again.
type IndexGeneration struct {
	ID    uint32
	State IndexState
	Rules uint8      // version of normalisers and of what is indexed: IndexRules for a new generation
	Names NameSearch // how names are indexed
}

// NameSearch says how names are indexed: what can be found, and what a dump leaks (THREATS.md).
type NameSearch string

const (
	// NamesPrefix indexes truncated prefixes: names are found by their beginning, as FHIR asks.
	NamesPrefix NameSearch = "prefix"
	// NamesExact indexes whole names and their words: a search for the beginning of a name finds nothing.
	NamesExact NameSearch = "exact"
	// NamesCompound indexes whole family names together with the birth date, and with the birth year and the given name's
	// initial: a name alone is not looked up.
	NamesCompound NameSearch = "compound"

	// phonetically, appended to one of them, indexes how names sound together with the birth year as well.
	phonetically = "+phonetic"
)

// IndexLease bounds for how long an instance goes by what it knows about the index generations: a lookup or a mint begins with
// knowledge no older than one lease, and has ended, or failed, when the knowledge is two leases old. So two leases after a change
// of the generations nothing under way knows less; whoever changes them waits that long before a step that relies on it.
const IndexLease = 5 * time.Second

// generations is what Records knows of the index generations; it is never changed.
type generations struct {
	all    []*index // by id
	active *index
	known  time.Time // from before the storage was asked
}

// same reports whether both ask for the same tokens, and mint the same.
func (g *generations) same(other *generations) bool {
	return g.active == other.active && slices.Equal(g.all, other.all)
}

// errUnknownRules refuses a generation whose tokens this program cannot make.
var errUnknownRules = errors.New("phi: an index generation was made by rules that this program does not know")

// openIndex learns what index generations there are, on an empty storage after choosing one.
func (r *Records) openIndex(ctx context.Context, names NameSearch) error {
	if names != "" {
		if err := r.storage.ChooseNames(ctx, names); err != nil {
			return fmt.Errorf("choosing how names are indexed: %w", err)
		}
	}
	g, err := r.generations(ctx)
	if err != nil {
		return err
	}
	if names != "" && !slices.ContainsFunc(g.all, func(x *index) bool { return x.Names == names }) {
		return fmt.Errorf("index generation %d indexes names by %s, not by %s: %w", g.active.ID, g.active.Names, names, ErrNames)
	}
	return nil
}

// generations returns the index generations, asking the storage for them when what is known is older than a lease. One asks
// for all who wait.
func (r *Records) generations(ctx context.Context) (*generations, error) {
	if g := r.indexes.Load(); g != nil && time.Since(g.known) < r.lease {
		return g, nil
	}
	select {
	case r.learning <- struct{}{}:
		defer func() { <-r.learning }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for index generations: %w", ctx.Err())
	}
	before := r.indexes.Load()
	if before != nil && time.Since(before.known) < r.lease {
		return before, nil
	}
	g := &generations{known: time.Now()}
	list, err := r.storage.IndexGenerations(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading index generations: %w", err)
	}
	for _, state := range list {
		x, err := r.generation(ctx, state, before)
		if err != nil {
			return nil, err
		}
		g.all = append(g.all, x)
		if state.State == IndexActive {
			g.active = x
		}
	}
	if g.active == nil {
		return nil, errors.New("reading index generations: none is active")
	}
	r.indexes.Store(g)
	return g, nil
}

// generation loads the keys of a generation, making them when nobody has before.
func (r *Records) generation(ctx context.Context, state IndexGeneration, before *generations) (*index, error) {
	if before != nil {
		for _, x := range before.all {
			if x.IndexGeneration == state {
				return x, nil
			}
			if x.ID == state.ID && x.Rules == state.Rules && x.Names == state.Names {
				return newIndex(state, x.keys), nil
			}
		}
	}
	if state.Rules < 1 || state.Rules > IndexRules {
		return nil, fmt.Errorf("index generation %d, rules %d: %w", state.ID, state.Rules, errUnknownRules)
	}
	keys := map[TokenKind][]byte{}
	for kind, name := range state.secrets() {
		key, err := r.secret(ctx, name)
		if err != nil {
			return nil, err
		}
		keys[kind] = key
	}
	return newIndex(state, keys), nil
}

// secrets names the organisation's secrets of a generation.
func (g IndexGeneration) secrets() map[TokenKind]string {
	names := g.kinds()
	if g.ID > 1 {
		for kind := range names {
			names[kind] += "/" + strconv.FormatUint(uint64(g.ID), 10)
		}
	}
	return names
}

// SecretGeneration is the generation of index keys that a secret is of, by its name; 0 when it is of none.
func SecretGeneration(name string) uint32 {
	if !strings.HasPrefix(name, "index-") {
		return 0
	}
	_, number, later := strings.Cut(name, "/")
	if !later {
		return 1
	}
	id, _ := strconv.ParseUint(number, 10, 32)
	return uint32(id)
}

// KeysChanged makes the next lookup or mint ask what index generations there are.
func (r *Records) KeysChanged() {
	if g := r.indexes.Load(); g != nil {
		expired := *g
		expired.known = time.Time{}
		r.indexes.CompareAndSwap(g, &expired)
	}
}

// within bounds work that relies on the generations: see IndexLease.
func (r *Records) within(ctx context.Context, g *generations) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, g.known.Add(2*r.lease))
}

// lookup returns a conjunction of alternatives that every record which satisfies the parameters carries under some generation, nil
// when one generation cannot answer.
func (g *generations) lookup(resourceType string, params []Param) [][]Token {
	var sets [][]Token
	for i, x := range g.all {
		more := x.lookup(resourceType, params)
		switch {
		case len(more) == 0:
			return nil
		case i == 0:
			sets = more
		default:
			sets = either(sets, more)
		}
	}
	return sets
}

// carries reports whether an opened record could have been found by a conjunction of alternatives: whether it has, under some
// generation, one token of each. Who edits tokens can offer a record for another's search, and is noticed by this.
func (g *generations) carries(r *fhir.Resource, sets [][]Token) bool {
	var kinds uint32
	for _, alternatives := range sets {
		for _, t := range alternatives {
			kinds |= 1 << t.Kind
		}
	}
	var carried []Token
	for _, x := range g.all {
		carried = append(carried, x.some(kinds, r.Type, r.Elements)...)
	}
	for _, alternatives := range sets {
		if !slices.ContainsFunc(alternatives, func(t Token) bool { return slices.Contains(carried, t) }) {
			return false
		}
	}
	return true
}

// phonetic reports whether names can be looked up by their sound.
func (g *generations) phonetic() bool {
	return !slices.ContainsFunc(g.all, func(x *index) bool { return x.keys[TokenSoundYear] == nil })
}

// either combines two conjunctions, of which a record satisfies one whole or the other.
func either(a, b [][]Token) [][]Token {
	sets := make([][]Token, max(len(a), len(b)))
	for i := range sets {
		sets[i] = slices.Concat(a[min(i, len(a)-1)], b[min(i, len(b)-1)])
	}
	return sets
}

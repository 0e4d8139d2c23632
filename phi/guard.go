package phi

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/tidwall/gjson"
)

// guard is a condition that must hold when changes are committed: no current record carries the tokens, but for those excepted
// (Guard.Except). It becomes tokens only then, under the index generations of that moment.
type guard struct {
	resourceType string
	tokens       func(*generations) [][]Token
	except       map[string]int64

	// Of an identifier that must be unique: the change that brings it, and where it stands there.
	brings  *change
	element string
}

// store commits writes that were minted under index. A guard is only as good as what is known of the generations: when that
// changed meanwhile, the commit fails with ErrKey and is tried again.
func (a *attempt) store(ctx context.Context, index *generations, writes []Write, guards []*guard) error {
	if len(guards) == 0 {
		return a.storage.Commit(ctx, writes, nil)
	}
	now, err := a.generations(ctx)
	if err != nil {
		return err
	}
	if !now.same(index) {
		return ErrKey
	}
	ctx, cancel := a.within(ctx, now)
	defer cancel()
	at := make([]Guard, len(guards))
	for i, g := range guards {
		at[i] = Guard{Type: g.resourceType, Tokens: g.tokens(now), Except: g.except}
	}
	return a.storage.Commit(ctx, writes, at)
}

// errNotUnique is the cause of a refusal that trying again does not mend.
var errNotUnique = errors.New("phi: an identifier that must be unique is another patient's")

// refused fails the change that brings an identifier which is another patient's. The refusal names the entry and the element,
// never the value.
func (a *attempt) refused(g *guard) *Error {
	a.blame(g.brings)
	g.brings.failed(fail(Conflict, "duplicate", "another patient has the same value of an identifier that is unique here").
		at(g.element).because(errNotUnique))
	return g.brings.err
}

// uniqueness guards the identifiers of patients whose system is one of those that must be unique (Config.UniqueIdentifiers). Two
// patients of the same commit with the same value are refused at once.
func (a *attempt) uniqueness(changes []*change) ([]*guard, *Error) {
	if len(a.unique) == 0 {
		return nil, nil
	}
	var guards []*guard
	var twice *guard
	written := map[string]int64{} // what these records carry until now does not count
	brought := map[string]*change{}
	for _, c := range changes {
		if c.ref.Type != "Patient" || c.skipped() {
			continue
		}
		written[c.ref.ID] = 0
		if c.resource == nil || replaced(c.resource.Type, c.resource.Elements) {
			continue
		}
		c.eachIdentifier(func(n int, system, value string) {
			normal := IndexGeneration{Rules: IndexRules}.identifier(value)
			if normal == "" || !slices.Contains(a.unique, system) {
				return
			}
			g := &guard{
				resourceType: "Patient", except: written, brings: c, element: "Patient.identifier[" + strconv.Itoa(n) + "]",
				tokens: func(g *generations) [][]Token { return [][]Token{g.identifier("Patient", system, value)} },
			}
			guards = append(guards, g)
			if other := brought[identified(system, normal)]; other != nil && other != c {
				twice = g
			}
			brought[identified(system, normal)] = c
		})
	}
	if twice != nil {
		return nil, a.refused(twice)
	}
	return guards, nil
}

// eachIdentifier calls f for the identifiers of a change's content, with their places.
func (c *change) eachIdentifier(f func(n int, system, value string)) {
	for _, e := range c.resource.Elements {
		if e.Name != "identifier" {
			continue
		}
		n := 0
		each(e.Raw, func(id gjson.Result) {
			f(n, id.Get("system").String(), id.Get("value").String())
			n++
		})
	}
}

// identifier returns the token of an identifier under each generation.
func (g *generations) identifier(resourceType, system, value string) []Token {
	var tokens []Token
	for _, x := range g.all {
		m := minter{index: x, kinds: allKinds, resourceType: resourceType}
		m.add(TokenIdentifier, identified(system, x.identifier(value)))
		tokens = append(tokens, m.tokens...)
	}
	return tokens
}

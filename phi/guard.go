package phi

import "context"

// guard is a condition that must hold when changes are committed: no current record satisfies the parameters, but for those
// excepted (Guard.Except). It becomes tokens only then, under the index generations of that moment.
type guard struct {
	resourceType string
	params       []Param // of identifiers only, all answered by the index
	except       map[string]int64
}

// mint makes the tokens of a change, unless it has them.
func (c *change) mint(x *index) {
	w := &c.write
	if w.IndexID == x.ID {
		return
	}
	w.IndexID, w.Tokens = x.ID, nil
	if c.resource != nil {
		w.Tokens = x.tokens(c.resource.Type, c.resource.Elements)
	}
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
		at[i] = Guard{Type: g.resourceType, Tokens: now.lookup(g.resourceType, g.params), Except: g.except}
	}
	return a.storage.Commit(ctx, writes, at)
}

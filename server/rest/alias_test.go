package rest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chartkeep/chartkeep/audit"
)

func newTestAliaser(t testing.TB, secret byte) *aliaser {
	t.Helper()
	a, err := newAliaser(bytes.Repeat([]byte{secret}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAliases(t *testing.T) {
	a, other := newTestAliaser(t, 1), newTestAliaser(t, 2)
	value := rapid.OneOf(rapid.StringN(1, 40, 120), rapid.StringMatching(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), rapid.StringMatching(`[0-9A-F]{32}`))
	rapid.Check(t, func(t *rapid.T) {
		v := value.Draw(t, "value")
		if v == "system" {
			t.Skip()
		}
		alias := a.hide(kindPatient, v)
		if got, ok := a.reveal(kindPatient, alias); !ok || got != v || a.hide(kindPatient, v) != alias {
			t.Fatalf("%q under %s comes back as %q, %v", v, alias, got, ok)
		}
		if strings.Contains(alias, v) && len(v) > 8 {
			t.Fatalf("%s shows %q", alias, v)
		}
		if a.hide(kindUser, v)[len("user-"):] == alias[len("patient-"):] || other.hide(kindPatient, v) == alias {
			t.Fatal("two kinds, or two organisations, share an alias")
		}
		if _, ok := other.reveal(kindPatient, alias); ok {
			t.Fatal("an alias of another organisation is taken")
		}
		if _, ok := a.reveal(kindUser, "user-"+alias[len("patient-"):]); ok {
			t.Fatal("an alias of another kind is taken")
		}
	})
}

func FuzzReveal(f *testing.F) {
	a := newTestAliaser(f, 1)
	f.Add(a.hide(kindUser, "dr-rivera"))
	f.Add(a.hide(kindUser, "018f3e1a-0000-7000-8000-000000000001"))
	f.Add("user-")
	f.Fuzz(func(t *testing.T, alias string) {
		if v, ok := a.reveal(kindUser, alias); ok && a.hide(kindUser, v) != alias {
			t.Errorf("%q reveals %q, which hides as %q", alias, v, a.hide(kindUser, v))
		}
	})
}

func FuzzCursor(f *testing.F) {
	c, err := newCursors(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		f.Fatal(err)
	}
	from := time.UnixMicro(1e15).UTC()
	l := &look{bound: []byte("bound"), shown: queryJSON{From: &from}}
	good := c.seal(l, audit.Position{PartTime: time.UnixMicro(2e15).UTC(), ID: audit.ID{7}}, true)
	if !c.open(l, good) || !l.query.Forward || l.query.After != (audit.Position{PartTime: time.UnixMicro(2e15).UTC(), ID: audit.ID{7}}) || !l.query.From.Equal(from) || !l.query.To.IsZero() {
		f.Fatalf("the cursor came back as %+v", l.query)
	}
	if c.open(&look{bound: []byte("other")}, good) {
		f.Fatal("a cursor of other filters is taken")
	}
	f.Add(good)
	f.Add("")
	f.Fuzz(func(t *testing.T, cursor string) {
		if c.open(l, cursor) && (l.query.After.ID != audit.ID{7} || len(cursor) != len(good)) {
			t.Errorf("%q is taken for a cursor", cursor)
		}
	})
}

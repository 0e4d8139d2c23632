package postgres

import (
	"errors"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// TestPublications holds that what an issuer published last is there for the next start, that an instance which was slow does not put
// an older document in its place, and that what somebody else has written into the table is not believed.
func TestPublications(t *testing.T) {
	db, name := open(t)
	ctx, admin := t.Context(), connect(t, name, "")
	p, err := auth.NewPublications(db.Issuers(), make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	const issuer = "https://id.example.org/realms/a"
	last := func(want string, at time.Time, failure bool) {
		t.Helper()
		body, fetched, err := p.Last(ctx, issuer, auth.PublishedKeys)
		if (err != nil) != failure || string(body) != want || !fetched.Equal(at) {
			t.Errorf("%q of %v, %v; want %q of %v", body, fetched, err, want, at)
		}
	}
	if _, _, err := p.Last(ctx, issuer, auth.PublishedKeys); !errors.Is(err, auth.ErrUnpublished) {
		t.Errorf("before anything was kept: %v", err)
	}
	at := time.Now().UTC().Truncate(time.Microsecond)
	for _, x := range []struct {
		text string
		at   time.Time
	}{{"one", at}, {"two", at.Add(time.Minute)}, {"older", at.Add(time.Second)}} {
		if err := p.Keep(ctx, issuer, auth.PublishedKeys, []byte(x.text), x.at); err != nil {
			t.Fatal(err)
		}
	}
	last("two", at.Add(time.Minute), false)
	if err := p.Keep(ctx, issuer, auth.PublishedMetadata, []byte("{}"), at); err != nil {
		t.Fatal(err)
	}
	for _, edit := range []string{
		`UPDATE issuer_publication SET document = 'planted' WHERE kind = 'jwks'`,
		`UPDATE issuer_publication SET document = 'two', fetched = fetched + interval '1 day' WHERE kind = 'jwks'`,
		`UPDATE issuer_publication k SET document = m.document, mac = m.mac, fetched = m.fetched FROM issuer_publication m WHERE k.kind = 'jwks' AND m.kind = 'metadata'`,
	} {
		must(t, admin, edit)
		last("", time.Time{}, true)
	}
	if _, err := connect(t, name, "chartkeep_records").Exec(ctx, `DELETE FROM issuer_publication`); err == nil {
		t.Error("the program may delete")
	}
}

package phi

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi/fhir"
)

// export is what one reader is given at one time in the de-identified view: one request with the pages that continue it, or
// all entries of one bundle. Its key is random, so the pseudonyms of one export join and those of two do not, and it is kept
// nowhere but in the sealed cursor of the next page, which ends with the export: then the way back is gone (45 CFR 164.514(c)).
type export struct {
	key   [32]byte
	until int64 // Unix time in seconds, after which no page continues it
}

// exportLife is how long the pages of an export may be asked for.
const exportLife = 24 * time.Hour

func newExport(now time.Time) *export {
	x := &export{until: now.Add(exportLife).Unix()}
	rand.Read(x.key[:])
	return x
}

// pseudonym is the id that an export shows for a record.
func (x *export) pseudonym(ref Ref) string { return x.keyed("pseudonym\x00" + ref.String()) }

// id names the export in events.
func (x *export) id() string { return x.keyed("export") }

func (x *export) keyed(text string) string {
	mac := hmac.New(sha256.New, x.key[:])
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// exported is the export that the attempt takes part in.
func (a *attempt) exported() *export {
	if a.export == nil {
		a.export = a.caller.export
	}
	if a.export == nil {
		a.export = newExport(a.now())
	}
	return a.export
}

// continueExport takes up the export of a page before this one, from its cursor.
func (a *attempt) continueExport(from cursor) *Error {
	if len(from.Export) != len(export{}.key) {
		return nil
	}
	if a.now().Unix() > from.Until {
		return invalid("value", "the pages of a de-identified export can be asked for during a day")
	}
	a.export = &export{[32]byte(from.Export), from.Until}
	return nil
}

// exportIn puts the export into the cursor of the next page, when it is of the de-identified view.
func (a *attempt) exportIn(next cursor) cursor {
	if a.view.reduction == Deidentified {
		next.Export, next.Until = a.exported().key[:], a.exported().until
	}
	return next
}

// alias is what an export shows in the place of a reference: the pseudonym of a record that the caller can be shown in the
// same view, and nothing for any other.
func (a *attempt) alias(ref Ref) (string, bool) {
	d := a.access.Type(a.caller.Principal, auth.Read, ref.Type, a.caller.Purpose)
	_, reduction, ok := ViewOf(d.View, ref.Type)
	if !d.Allowed || !ok || reduction != Deidentified || d.Only != nil { // of what scopes leave a part of, it may be another part
		return "", false
	}
	return a.exported().pseudonym(ref), true
}

// anonymous gives an answer in the de-identified view its pseudonym, and of the time of its storage only the year (45 CFR
// 164.514(b)(2)(i)(C)).
func (a *attempt) anonymous(res *Resource) {
	res.ID = a.exported().pseudonym(res.Ref)
	res.Updated = time.Date(res.Updated.Year(), 1, 1, 0, 0, 0, 0, time.UTC)
}

// renderAnonymous makes the JSON of a record in the de-identified view from what safeHarbor left.
func (a *attempt) renderAnonymous(res *Resource, elements []fhir.Element) *Resource {
	a.anonymous(res)
	res.JSON = Conceal(fhir.Assemble(nil, res.Type, res.ID, []byte(`{"tag":[`+subsettedTag+`]}`), elements))
	return res
}

// entityExport is the type of the entity by which the events of one de-identified export belong together.
const entityExport = "deidentified-export"

// tellExport says in an event that what it tells of is a de-identified export, and of which.
func (a *attempt) tellExport(e *audit.Event) {
	if e.Outcome == audit.Success && a.view.reduction == Deidentified {
		e.Entities = append(e.Entities, audit.Entity{Type: entityExport, ID: a.exported().id()})
	}
}

package phi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// consentText is an active Consent of a patient's with a provision.
func consentText(provision string) string {
	return `{"resourceType":"Consent","status":"active","scope":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/consentscope","code":"patient-privacy"}]},` +
		`"category":[{"text":"privacy"}],"patient":{"reference":"Patient/p"},"policyRule":{"text":"ours"},"provision":` + provision + `}`
}

func ruleText(r auth.ConsentRule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d ", r.Depth)
	if r.Permit {
		b.WriteString("permit")
	} else {
		b.WriteString("deny")
	}
	if r.Actor != "" {
		b.WriteString(" " + r.Actor)
	}
	for _, x := range r.Segments.Numbers() {
		fmt.Fprintf(&b, " segment %d", x)
	}
	if len(r.Purposes) > 0 {
		b.WriteString(" for " + strings.Join(r.Purposes, "+"))
	}
	for _, at := range []struct {
		word string
		time time.Time
	}{{"from", r.From}, {"until", r.Until}} {
		if !at.time.IsZero() {
			b.WriteString(" " + at.word + " " + at.time.Format(time.RFC3339))
		}
	}
	return b.String()
}

// TestConsentRules holds what provisions compile to: of what cannot be applied, a denial is taken without it and a permission is not taken.
func TestConsentRules(t *testing.T) {
	const (
		rivera = `{"role":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ParticipationType","code":"IRCP"}]},"reference":{"reference":"Practitioner/rivera"}}`
		chen   = `{"role":{"coding":[{"code":"IRCP"}]},"reference":{"reference":"Practitioner/chen/_history/1"}}`
		clinic = `{"role":{"coding":[{"code":"IRCP"}]},"reference":{"reference":"Organization/clinic"}}`
		keeper = `{"role":{"coding":[{"code":"CST"}]},"reference":{"reference":"Practitioner/chen"}}`
		son    = `{"role":{"coding":[{"code":"IRCP"}]},"reference":{"reference":"RelatedPerson/son"}}`
		sud    = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"SUD"}`
		note   = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"PSYTHPN"}`
		hiv    = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ActCode","code":"HIV"}`
		treat  = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ActReason","code":"TREAT"}`
		resch  = `{"system":"http://terminology.hl7.org/CodeSystem/v3-ActReason","code":"HRESCH"}`
	)
	for _, c := range []struct{ provision, want, doubts string }{
		{`{"type":"deny"}`, "0 deny", ""},
		{`{"type":"permit"}`, "", ""},
		{`{}`, "", ""},
		{`{"type":"deny","actor":[` + rivera + `,` + chen + `]}`, "0 deny Practitioner/rivera; 0 deny Practitioner/chen", ""},
		{`{"type":"deny","actor":[` + son + `]}`, "0 deny RelatedPerson/son", ""},
		{`{"type":"deny","actor":[` + rivera + `,` + clinic + `]}`, "0 deny", "Consent.provision.actor"},
		{`{"type":"deny","actor":[` + keeper + `]}`, "0 deny Practitioner/chen", ""},
		{`{"type":"deny","purpose":[` + resch + `]}`, "0 deny for HRESCH", ""},
		{`{"type":"deny","purpose":[` + treat + `]}`, "0 deny for BTG+CAREMGT+COC+ERTREAT+ETREAT+TREAT", ""},
		{`{"type":"deny","purpose":[{"system":"http://example.test","code":"X"}]}`, "0 deny", "Consent.provision.purpose"},
		{`{"type":"deny","securityLabel":[` + sud + `]}`, "0 deny segment 1", ""},
		{`{"type":"deny","securityLabel":[` + sud + `,` + hiv + `]}`, "0 deny", "Consent.provision.securityLabel"},
		{`{"type":"deny","class":[{"code":"Observation"}]}`, "0 deny", "Consent.provision.class"},
		{`{"type":"deny","code":[{"text":"x"}],"dataPeriod":{"start":"2020"}}`, "0 deny", "Consent.provision.code Consent.provision.dataPeriod"},
		{`{"type":"deny","action":[{"coding":[{"code":"access"}]}]}`, "0 deny", ""},
		{`{"type":"deny","action":[{"coding":[{"code":"correct"}]}]}`, "0 deny", "Consent.provision.action"},
		{`{"type":"deny","period":{"start":"2026-05-01","end":"2026-05-31"}}`, "0 deny from 2026-05-01T00:00:00Z until 2026-06-01T00:00:00Z", ""},
		{`{"type":"permit","securityLabel":[` + sud + `],"actor":[` + rivera + `]}`, "0 permit Practitioner/rivera segment 1", ""},
		{`{"type":"permit","securityLabel":[` + sud + `,` + hiv + `,` + note + `],"actor":[` + rivera + `,` + clinic + `]}`, "0 permit Practitioner/rivera segment 1 segment 2", "Consent.provision.actor Consent.provision.securityLabel"},
		{`{"type":"permit","securityLabel":[` + sud + `],"actor":[` + clinic + `]}`, "", "Consent.provision.actor"},
		{`{"type":"permit","securityLabel":[` + sud + `],"actor":[` + keeper + `]}`, "", "Consent.provision.actor"},
		{`{"type":"permit","securityLabel":[` + hiv + `]}`, "", "Consent.provision.securityLabel"},
		{`{"type":"permit","securityLabel":[` + sud + `],"class":[{"code":"Observation"}]}`, "", "Consent.provision.class"},
		{`{"type":"permit","securityLabel":[` + sud + `],"purpose":[{"system":"http://example.test","code":"X"}]}`, "", "Consent.provision.purpose"},
		// Exceptions: of what they do not say themselves they take over what they stand in; permissions stay within it.
		{`{"type":"deny","provision":[{"type":"permit","actor":[` + rivera + `]}]}`, "0 deny; 1 permit Practitioner/rivera", ""},
		{`{"type":"deny","purpose":[` + resch + `],"provision":[{"type":"permit","actor":[` + rivera + `]}]}`, "0 deny for HRESCH; 1 permit Practitioner/rivera for HRESCH", ""},
		{`{"type":"permit","actor":[` + rivera + `],"provision":[{"type":"deny","securityLabel":[` + sud + `]}]}`, "1 deny Practitioner/rivera segment 1", ""},
		{`{"type":"permit","actor":[` + rivera + `],"provision":[{"type":"deny","actor":[` + chen + `]}]}`, "1 deny Practitioner/chen", ""},
		{`{"type":"deny","actor":[` + rivera + `],"provision":[{"type":"permit","actor":[` + chen + `]}]}`, "0 deny Practitioner/rivera", ""},
		{`{"type":"permit","actor":[` + clinic + `],"provision":[{"type":"deny","securityLabel":[` + sud + `]}]}`, "1 deny segment 1", "Consent.provision.actor"},
		{`{"type":"deny","class":[{"code":"x"}],"provision":[{"type":"permit","actor":[` + rivera + `]}]}`, "0 deny", "Consent.provision.class"},
		{`{"type":"deny","provision":[{"purpose":[` + resch + `]}]}`, "0 deny; 1 deny for HRESCH", ""},
		{`{"type":"permit","period":{"end":"2026"},"provision":[{"type":"deny"},{"type":"permit","securityLabel":[` + sud + `],"period":{"start":"2026-05-01","end":"2027"}}]}`,
			"1 deny until 2027-01-01T00:00:00Z; 1 permit segment 1 from 2026-05-01T00:00:00Z until 2027-01-01T00:00:00Z", ""},
	} {
		k := consentOf(parsed(t, consentText(c.provision)))
		var got []string
		for _, r := range k.rules {
			got = append(got, ruleText(r))
		}
		if strings.Join(got, "; ") != c.want || strings.Join(k.doubts, " ") != c.doubts || k.patient != "p" {
			t.Errorf("%s\ngot  %q, doubts %q\nwant %q, doubts %q", c.provision, strings.Join(got, "; "), k.doubts, c.want, c.doubts)
		}
	}
}

// TestWhichConsentsCount: active ones about privacy, of a patient of ours.
func TestWhichConsentsCount(t *testing.T) {
	deny := consentText(`{"type":"deny"}`)
	policy := strings.NewReplacer(`"provision":{"type":"deny"}`, `"note":[]`)
	for _, c := range []struct {
		text string
		want int
	}{
		{deny, 1},
		{strings.Replace(deny, `"active"`, `"draft"`, 1), 0},
		{strings.Replace(deny, `"active"`, `"inactive"`, 1), 0},
		{strings.Replace(deny, `"active"`, `"rejected"`, 1), 0},
		{strings.Replace(deny, `"active"`, `"entered-in-error"`, 1), 0},
		{strings.Replace(deny, `patient-privacy`, `research`, 1), 0},
		{strings.Replace(deny, `Patient/p`, `https://other.test/Patient/p`, 1), 0},
		{strings.Replace(deny, `"policyRule":{"text":"ours"}`, `"modifierExtension":[{"url":"x","valueBoolean":true}]`, 1), 1},
		{strings.Replace(consentText(`{"type":"permit","securityLabel":[{"code":"SUD"}]}`), `"policyRule":{"text":"ours"}`, `"modifierExtension":[{"url":"x","valueBoolean":true}]`, 1), 0},
		// A base rule that is said by its code alone.
		{strings.Replace(policy.Replace(deny), `{"text":"ours"}`, `{"coding":[{"code":"OPTOUT"}]}`, 1), 1},
		{strings.Replace(policy.Replace(deny), `{"text":"ours"}`, `{"coding":[{"code":"OPTIN"}]}`, 1), 0},
		{policy.Replace(deny), 0},
	} {
		if k := consentOf(parsed(t, c.text)); len(k.rules) != c.want {
			t.Errorf("%s: %+v", c.text, k)
		}
	}
}

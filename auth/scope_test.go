package auth

import (
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseScopes(t *testing.T) {
	all := interactions()
	for scope, want := range map[string]string{ // letters granted to user/ on Patient
		"user/Patient.rs":                         "rs",
		"user/Patient.r":                          "r",
		"user/Patient.cruds":                      "cruds",
		"user/*.cud":                              "cud",
		"user/Patient.read":                       "rs",
		"user/Patient.write":                      "cud",
		"user/Patient.*":                          "cruds",
		"user/*.*":                                "cruds",
		"user/*.read user/Patient.u":              "rus",
		"user/Patient.r user/Patient.s":           "rs",
		"openid user/Patient.d launch":            "d",
		"":                                        "",
		"user/Observation.cruds":                  "",
		"patient/Patient.cruds":                   "",
		"system/*.cruds":                          "",
		"user/Patient.":                           "",
		"user/Patient":                            "",
		"user/.rs":                                "",
		"user/Patient.sr":                         "", // letters out of order
		"user/Patient.rr":                         "",
		"user/Patient.rsx":                        "",
		"user/Patient.READ":                       "",
		"user/Patient.reads":                      "",
		"user/patient.rs":                         "",
		"user/Patient/1.rs":                       "",
		"user/Pat*.rs":                            "",
		"user/Patient.rs?_id=1":                   "",
		"user/*.rs?category=x":                    "",
		"user/Patient?x=1.rs":                     "",
		"user//Patient.rs":                        "",
		"User/Patient.rs":                         "",
		"user/Patient.rs\tuser/Patient.c":         "",
		"user/Patient.rs,user/Patient.c":          "",
		"user/**.rs":                              "",
		"user/" + strings.Repeat("P", 65) + ".rs": "",
	} {
		s := ParseScopes(scope)
		got := ""
		for _, i := range all {
			if s.Covers(LevelUser, "Patient", i) {
				got += string(rune(i))
			}
		}
		if got != want {
			t.Errorf("%q grants %q, want %q", scope, got, want)
		}
	}
	s := ParseScopes("openid fhirUser launch/patient patient/*.rs user/Broken")
	for name, want := range map[string]bool{"openid": true, "fhirUser": true, "launch/patient": true, "patient/*.rs": false, "user/Broken": false, "": false} {
		if s.Has(name) != want {
			t.Errorf("Has(%q) is %v", name, !want)
		}
	}
	if s.Covers(LevelPatient, "Observation", 'x') || s.Covers(Level(9), "Observation", Read) || !s.Covers(LevelPatient, "Observation", Read) {
		t.Error("unknown letter or level")
	}
	if (Scopes{}).Covers(LevelUser, "Patient", Read) || (Scopes{}).Has("openid") {
		t.Error("zero scopes cover something")
	}
}

// interactions are the letters of a scope, in their order.
func interactions() []Interaction { return []Interaction{Create, Read, Update, Delete, Search} }

// left spells what scopes leave of a type for one letter: "-" for nothing, "*" for all, "patient" for the launch patient's compartment,
// else the constraints.
func left(s Scopes, system bool, resourceType string, i Interaction) string {
	bound, only, ok := s.reach(system, resourceType, i)
	switch {
	case !ok:
		return "-"
	case only == nil && bound:
		return "patient"
	case only == nil:
		return "*"
	}
	var list []string
	for _, c := range only {
		one := ""
		if c.Patient {
			one = "patient"
		}
		for _, p := range c.Predicates {
			one += "?" + p.Name + "=" + p.Value
		}
		list = append(list, one)
	}
	if bound {
		return "bound: " + strings.Join(list, " or ")
	}
	return strings.Join(list, " or ")
}

func TestGranularScopes(t *testing.T) {
	const laboratory, vitals = "category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory", "category=vital-signs"
	for _, c := range []struct {
		scopes string
		system bool
		letter Interaction
		want   string
	}{
		{"user/Observation.rs?" + laboratory, false, Read, "?" + laboratory},
		{"user/Observation.rs?" + laboratory, false, Search, "?" + laboratory},
		{"user/Observation.rs?" + laboratory, false, Update, "-"}, // letters are of the scope
		{"user/Observation.rs?" + laboratory + "&code=1", false, Read, "?" + laboratory + "?code=1"},
		{"user/Observation.rs?" + laboratory + " user/Observation.r?" + vitals, false, Read, "?" + laboratory + " or ?" + vitals},
		{"user/Observation.rs?" + laboratory + " user/Observation.r?" + vitals, false, Search, "?" + laboratory},
		{"user/Observation.rs?" + laboratory + " user/Observation.r", false, Read, "*"}, // without a constraint wins, letter by letter
		{"user/Observation.rs?" + laboratory + " user/Observation.r", false, Search, "?" + laboratory},
		{"user/*.r user/Observation.rs?" + laboratory, false, Read, "*"},
		{"user/Observation.rs?" + laboratory + " user/*.read", false, Search, "*"},
		{"patient/Observation.rs?" + laboratory, false, Read, "bound: patient?" + laboratory},
		{"patient/Observation.rs?" + laboratory + " patient/*.r", false, Read, "patient"},
		{"patient/Observation.rs?" + laboratory + " patient/*.r", false, Search, "bound: patient?" + laboratory},
		{"user/Observation.rs?" + laboratory + " patient/*.rs", false, Read, "?" + laboratory + " or patient"},
		{"user/Observation.rs?" + laboratory + " patient/Observation.rs?" + vitals, false, Read, "?" + laboratory + " or patient?" + vitals},
		{"system/Observation.rs?" + laboratory, false, Read, "-"},
		{"system/Observation.rs?" + laboratory, true, Read, "?" + laboratory},
		{"system/Observation.rs?" + laboratory + " patient/*.rs", false, Read, "patient"},
		{"system/Observation.rs?" + laboratory + " patient/*.rs", true, Read, "?" + laboratory + " or patient"},
		{"system/*.rs user/Observation.rs?" + laboratory, true, Read, "*"},
		{"system/*.rs user/Observation.rs?" + laboratory, false, Read, "?" + laboratory},
		{"user/Observation.rs?category=a%7Cb", false, Read, "?category=a|b"},
		{"user/Observation.rs?category=a%2Cb", false, Read, "?category=a,b"},
	} {
		s := ParseScopes(c.scopes)
		if got := left(s, c.system, "Observation", c.letter); got != c.want {
			t.Errorf("%q leaves of %c (system %v) %q, want %q", c.scopes, c.letter, c.system, got, c.want)
		}
		if got := left(s, c.system, "Condition", c.letter); strings.Contains(got, "?") {
			t.Errorf("%q leaves %q of another type", c.scopes, got)
		}
		if strings.Contains(c.want, "?") && (s.Covers(LevelUser, "Observation", c.letter) || s.Covers(LevelSystem, "Observation", c.letter) && !strings.Contains(c.scopes, "*")) {
			t.Errorf("%q is said to cover without a constraint", c.scopes)
		}
	}
	many := "user/Observation.rs?category=0"
	for i := range 2 * maxGranular {
		many += " user/Observation.rs?category=" + strings.Repeat("x", i%7+1)
	}
	if _, only, _ := func() (bool, []Constraint, bool) { s := ParseScopes(many); return s.reach(false, "Observation", Read) }(); len(only) != maxGranular {
		t.Errorf("%d alternatives are kept, want %d", len(only), maxGranular)
	}
}

// What cannot be evaluated to the last byte grants nothing: not the whole of the type, above all.
func TestConstraintsThatGrantNothing(t *testing.T) {
	for _, scope := range []string{
		"user/Observation.rs?", "user/Observation.rs?category", "user/Observation.rs?category=", "user/Observation.rs?=laboratory",
		"user/Observation.rs?category:not=laboratory", "user/Observation.rs?category:missing=true", "user/Observation.rs?code:in=http://set",
		"user/Observation.rs?subject.name=x", "user/Observation.rs?subject:Patient.name=x", "user/Observation.rs?_has:Provenance:target:agent=x",
		"user/Observation.rs?_id=1", "user/Observation.rs?_lastUpdated=gt2020", "user/Observation.rs?_include=Observation:subject", "user/Observation.rs?_filter=x",
		"user/Observation.rs?category=a&", "user/Observation.rs?&category=a", "user/Observation.rs?category=a&&code=b", "user/Observation.rs?category=a?code=b=&=",
		"user/Observation.rs?category=a+b", "user/Observation.rs?category=%zz", "user/Observation.rs?category=%", "user/Observation.rs?category=%00",
		"user/Observation.rs?category=%0A", "user/Observation.rs?category=%ff", "user/Observation.rs?Category=a", "user/Observation.rs?-category=a",
		"user/Observation.read?category=a", "user/Observation.*?category=a", "user/Observation.sr?category=a", "user/Observation.?category=a",
		"user/*.rs?category=a", "user/Observation?category=a.rs", "user/Observation.rs?category=" + strings.Repeat("a", maxConstraint),
		"user/Observation.rs?" + strings.Repeat("category=a&", maxPredicates) + "category=a",
	} {
		s := ParseScopes(scope)
		for _, i := range interactions() {
			if got := left(s, true, "Observation", i); got != "-" {
				t.Errorf("%.60q leaves %q", scope, got)
			}
		}
	}
}

// A token is at most 8 KiB, and what one costs before it is refused for another reason is bounded (notes/auth.md section 4).
func TestHostileScopesAreBounded(t *testing.T) {
	fill := func(one func(n int) string) string {
		var b strings.Builder
		for n := 0; b.Len() < 8192; n++ {
			b.WriteString(one(n) + " ")
		}
		return b.String()
	}
	digits := func(n int) string {
		return strings.NewReplacer("0", "a", "1", "b", "2", "c", "3", "d", "4", "e", "5", "f", "6", "g", "7", "h", "8", "i", "9", "j").Replace(strconv.Itoa(n))
	}
	for name, scope := range map[string]string{
		"names":              fill(func(n int) string { return strconv.Itoa(n) }),
		"types":              fill(func(n int) string { return "user/T" + digits(n) + ".r" }),
		"constraints":        fill(func(int) string { return "user/A.r?a=a" }),
		"types, constrained": fill(func(n int) string { return "user/T" + digits(n) + ".cruds?a=a" }),
		"predicates":         fill(func(int) string { return "patient/A.cruds?" + strings.Repeat("a=a&", maxPredicates-1) + "a=a" }),
		"escapes":            fill(func(int) string { return "user/A.cruds?a=" + strings.Repeat("%41", 100) }),
	} {
		const runs = 50
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			ParseScopes(scope)
		}
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / runs; got > 48<<10 {
			t.Errorf("%s: %d bytes are allocated for one token's scopes", name, got)
		}
	}
}

// FuzzGranularScopes holds that a constraint narrows: what any scopes leave, the same scopes without their constraints leave too, and
// whole; and that no letter, type or level comes from one that does not spell it.
func FuzzGranularScopes(f *testing.F) {
	for _, s := range []string{
		"user/Observation.rs?category=laboratory patient/*.rs", "system/Patient.cruds?active=true user/Patient.r", "user/Patient.rs?a=b&c=d user/*.s",
		"patient/Patient.rs?", "user/Patient.r?x=1 user/Patient.s?x=%2", "user/Patient.rs?birthdate:missing=true",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		var wide []string
		for scope := range strings.SplitSeq(in, " ") {
			plain, _, _ := strings.Cut(scope, "?")
			wide = append(wide, plain)
		}
		narrow, whole := ParseScopes(in), ParseScopes(strings.Join(wide, " "))
		for _, system := range []bool{false, true} {
			for _, i := range interactions() {
				bound, only, ok := narrow.reach(system, "Patient", i)
				wholeBound, wholeOnly, wholeOK := whole.reach(system, "Patient", i)
				switch {
				case ok && !wholeOK, wholeOnly != nil, ok && !bound && wholeBound:
					t.Fatalf("%q leaves more than %q", in, wide)
				case ok && only == nil && !slices.ContainsFunc(strings.Split(in, " "), func(one string) bool { return !strings.Contains(one, "?") && strings.Contains(one, "/") }):
					t.Fatalf("%q leaves everything", in)
				case ok && only != nil && len(only) == 0:
					t.Fatalf("%q leaves a part with no part in it", in)
				}
				for _, c := range only {
					if !c.Patient && len(c.Predicates) == 0 {
						t.Fatalf("%q has a constraint that constrains nothing", in)
					}
				}
			}
		}
	})
}

// FuzzParseScopes holds that letters come from scopes that spell them: no string grants on a level that it does not name.
func FuzzParseScopes(f *testing.F) {
	for _, s := range []string{"user/*.cruds", "patient/Observation.rs?x=1", "system/Patient.read openid", "user/Patient.", "//.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s := ParseScopes(in)
		for level, prefix := range map[Level]string{LevelPatient: "patient/", LevelUser: "user/", LevelSystem: "system/"} {
			for _, i := range []Interaction{Create, Read, Update, Delete, Search} {
				if !s.Covers(level, "Patient", i) {
					continue
				}
				if !slices.ContainsFunc(strings.Split(in, " "), func(one string) bool {
					rest, ok := strings.CutPrefix(one, prefix)
					return ok && (strings.HasPrefix(rest, "*.") || strings.HasPrefix(rest, "Patient.")) && !strings.Contains(one, "?")
				}) {
					t.Fatalf("%q grants %c on %s", in, i, prefix)
				}
			}
		}
	})
}

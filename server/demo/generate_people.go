package demo

import (
	"fmt"
	"html"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/runes"
	"golang.org/x/text/transform"
	"golang.org/x/text/unicode/norm"
)

// spelling is a name in Latin letters and, where the family writes it otherwise, in its own script.
type spelling struct{ latin, own string }

// people is a stock of names that go together.
type people struct {
	race, ethnicity coded
	script          string // iso21090-EN-representation of the own script: IDE, SYL, ABC
	families        []spelling
	women, men      []spelling
}

type coded struct{ code, display string }

func (p people) given(gender string) []spelling {
	switch gender {
	case "female":
		return p.women
	case "male":
		return p.men
	}
	return append(append([]spelling{}, p.women...), p.men...)
}

func latin(names ...string) []spelling {
	out := make([]spelling, len(names))
	for i, name := range names {
		out[i].latin = name
	}
	return out
}

var (
	white    = coded{"2106-3", "White"}
	black    = coded{"2054-5", "Black or African American"}
	asian    = coded{"2028-9", "Asian"}
	native   = coded{"1002-5", "American Indian or Alaska Native"}
	hispanic = coded{"2135-2", "Hispanic or Latino"}
	other    = coded{"2186-5", "Not Hispanic or Latino"}
)

// peoples has accents, apostrophes, hyphens, spaces inside names and six scripts, because charts do.
var peoples = []people{
	{white, other, "",
		latin("Abbott", "Baxter", "Collins", "Doyle", "Fletcher", "Harper-Lane", "Kowalski", "McAllister", "O'Brien", "O’Shaughnessy", "Smith-Jones", "St. John", "Whitaker"),
		latin("Abigail", "Charlotte", "Eleanor", "Grace", "Hannah", "Mary-Anne", "Olivia", "Siobhán", "Violet"),
		latin("Benjamin", "Caleb", "Declan", "Edward", "Henry", "Jack", "Jean-Luc", "Owen", "Samuel")},
	{white, other, "",
		latin("Bjørnstad", "D'Angelo", "Dvořák", "Fournier", "Großmann", "Jørgensen", "Lefèvre", "Łukasiewicz", "Müller", "Østergård", "Schröder", "de la Croix", "van der Meer"),
		latin("Chloé", "Eszter", "Françoise", "Ingrid", "Małgorzata", "Renée", "Zoë", "Þórdís"),
		latin("André", "Björn", "François", "Günther", "Jiří", "Łukasz", "Søren", "Théo")},
	{white, hispanic, "",
		latin("Álvarez", "Castañeda", "de la Cruz", "Fonseca", "García Márquez", "Hernández", "Ibáñez", "Muñoz", "Núñez-Ortiz", "Peña", "Quiñones", "Rodríguez"),
		latin("Alicia", "Begoña", "Concepción", "Inés", "Lucía", "María José", "Sofía", "Ximena"),
		latin("Agustín", "Diego", "Íñigo", "Jesús", "José María", "Raúl", "Tomás", "Víctor")},
	{black, other, "",
		latin("Adeyemi", "Banks", "Coleman", "Diallo", "Freeman", "Jefferson", "N'Diaye", "Okonkwo", "Toussaint", "Washington"),
		latin("Aaliyah", "Chinwe", "De'Andra", "Imani", "Jasmine", "Keisha", "Nia", "Zuri"),
		latin("Andre", "D'Shawn", "Emeka", "Isaiah", "Kofi", "Malik", "Terrence", "Xavier")},
	{asian, other, "IDE",
		[]spelling{{"Wang", "王"}, {"Li", "李"}, {"Zhang", "張"}, {"Ouyang", "歐陽"}, {"Lin", "林"}, {"Huang", "黃"}},
		[]spelling{{"Mei", "美"}, {"Xiaoli", "曉麗"}, {"Jing", "靜"}, {"Yuting", "雨婷"}},
		[]spelling{{"Jianguo", "建國"}, {"Ming", "明"}, {"Zhiwei", "志偉"}, {"Haoran", "浩然"}}},
	{asian, other, "IDE",
		[]spelling{{"Satō", "佐藤"}, {"Takahashi", "高橋"}, {"Ōno", "大野"}, {"Kobayashi", "小林"}},
		[]spelling{{"Yōko", "陽子"}, {"Sakura", "桜"}, {"Haruka", "遥"}},
		[]spelling{{"Kenji", "健二"}, {"Shōta", "翔太"}, {"Jun'ichi", "純一"}}},
	{asian, other, "SYL",
		[]spelling{{"Kim", "김"}, {"Park", "박"}, {"Choi", "최"}, {"Jeong", "정"}},
		[]spelling{{"Seo-yeon", "서연"}, {"Ji-woo", "지우"}, {"Min-ji", "민지"}},
		[]spelling{{"Min-jun", "민준"}, {"Do-yun", "도윤"}, {"Sung-ho", "성호"}}},
	{asian, other, "",
		latin("Nguyễn", "Trần", "Phạm", "Đặng", "Huỳnh", "Võ"),
		latin("Ngọc Ánh", "Thị Hồng", "Quỳnh", "Thảo"),
		latin("Văn Đức", "Minh Tuấn", "Quốc Bảo", "Hữu Phước")},
	{asian, other, "SYL",
		[]spelling{{"Sharma", "शर्मा"}, {"Patel", "पटेल"}, {"Iyer", "अय्यर"}, {"Gupta", "गुप्ता"}},
		[]spelling{{"Ananya", "अनन्या"}, {"Priya", "प्रिया"}, {"Lakshmi", "लक्ष्मी"}},
		[]spelling{{"Arjun", "अर्जुन"}, {"Rohan", "रोहन"}, {"Vikram", "विक्रम"}}},
	{white, other, "ABC",
		[]spelling{{"Haddad", "حداد"}, {"al-Masri", "المصري"}, {"Khoury", "خوري"}, {"Abu-Nasr", "أبو نصر"}},
		[]spelling{{"Layla", "ليلى"}, {"Fatima", "فاطمة"}, {"Noor", "نور"}},
		[]spelling{{"Omar", "عمر"}, {"Yusuf", "يوسف"}, {"Khalid", "خالد"}}},
	{white, other, "ABC",
		[]spelling{{"Ivanova", "Иванова"}, {"Shevchenko", "Шевченко"}, {"Volkov", "Волков"}, {"Papadopoulos", "Παπαδόπουλος"}},
		[]spelling{{"Olena", "Олена"}, {"Yelizaveta", "Елизавета"}, {"Eleni", "Ελένη"}},
		[]spelling{{"Dmytro", "Дмитро"}, {"Fyodor", "Фёдор"}, {"Giorgos", "Γιώργος"}}},
	{native, other, "",
		latin("Begay", "Tsosie", "Yazzie", "Kinlicheenie", "Running Bear"),
		latin("Aiyana", "Dezbah", "Kaya", "Tallulah"),
		latin("Ahiga", "Hania", "Niyol", "Takoda")},
}

var streets = []string{"Alder", "Birch", "Cedar", "Dogwood", "Elm", "Juniper", "Magnolia", "Poplar", "Sycamore", "Willow"}

var cities = []struct{ name, state, zip, area string }{
	{"Boston", "MA", "021%02d", "617"}, {"Worcester", "MA", "016%02d", "508"}, {"Cañon City", "CO", "812%02d", "719"},
	{"Española", "NM", "875%02d", "505"}, {"Coeur d'Alene", "ID", "838%02d", "208"}, {"Winston-Salem", "NC", "271%02d", "336"},
	{"Toledo", "OH", "436%02d", "419"}, {"Baton Rouge", "LA", "708%02d", "225"}, {"San José", "CA", "951%02d", "408"},
	{"Fargo", "ND", "581%02d", "701"},
}

// address makes a mail address out of a name: latin letters, no accents.
func address(given, family, domain string) string {
	plain, _, err := transform.String(transform.Chain(norm.NFD, runes.Remove(runes.In(unicode.Mn))), given+"."+family)
	if err != nil {
		plain = given
	}
	letters := strings.Map(func(r rune) rune {
		if r == '.' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, strings.ToLower(plain))
	return letters + "@" + domain
}

func (c *chart) phone(area, use string) object {
	return object{"system", "phone", "value", fmt.Sprintf("(%s) 555-01%02d", area, c.IntN(100)), "use", use}
}

func (c *chart) patient() {
	family, given := pick(c.dice, c.people.families), pick(c.dice, c.people.given(c.gender))
	middle := pick(c.dice, c.people.given(c.gender))
	c.self = reference{"Patient", c.id, given.latin + " " + family.latin}

	givens := list{given.latin}
	if middle != given && c.chance(40) {
		givens = append(givens, middle.latin)
	}
	official := object{"use", "official", "family", family.latin, "given", givens}
	if c.age(generatedAt()) > 20 && c.chance(25) {
		official = append(official, "prefix", list{map[string]string{"female": "Ms.", "male": "Mr.", "other": "Mx."}[c.gender]})
	}
	if c.gender == "male" && c.chance(8) {
		official = append(official, "suffix", list{"Jr."})
	}
	names := list{official}
	if family.own != "" && given.own != "" {
		names = append(names, object{
			"extension", list{object{"url", "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation", "valueCode", c.people.script}},
			"use", "usual", "text", family.own + given.own, "family", family.own, "given", list{given.own},
		})
	}
	if c.chance(20) {
		names = append(names, object{"use", "nickname", "given", list{firstLetters(given.latin)}})
	}
	if c.gender == "female" && c.age(generatedAt()) > 30 && c.chance(30) {
		names = append(names, object{"use", "maiden", "family", pick(c.dice, c.people.families).latin, "given", list{given.latin}})
	}

	city := pick(c.dice, cities)
	telecom := list{c.phone(city.area, "home")}
	if c.chance(70) {
		telecom = append(telecom, c.phone(city.area, "mobile"))
	}
	if c.chance(60) {
		telecom = append(telecom, object{"system", "email", "value", address(given.latin, family.latin, "example.org"), "use", "home"})
	}
	lines := list{fmt.Sprintf("%d %s %s", c.between(1, 1899), pick(c.dice, streets), pick(c.dice, []string{"St", "Ave", "Ln", "Ct"}))}
	if c.chance(25) {
		lines = append(lines, fmt.Sprintf("Apt %d%c", c.between(1, 30), 'A'+rune(c.IntN(6))))
	}
	home := object{"use", "home", "line", lines, "city", city.name, "state", city.state,
		"postalCode", fmt.Sprintf(city.zip, c.between(1, 99)), "country", "US"}

	var bornAt any
	if c.chance(30) {
		at := c.born.Add(time.Duration(c.between(0, 24*60-1)) * time.Minute)
		bornAt = object{"extension", list{object{
			"url", "http://hl7.org/fhir/StructureDefinition/patient-birthTime",
			"valueDateTime", at.Format("2006-01-02T15:04:05") + c.born.In(c.zone).Format("Z07:00"),
		}}}
	}
	var died any
	if !c.died.IsZero() {
		died = c.stamp(c.died.Add(time.Duration(c.between(0, 86399)) * time.Second))
	}
	birthSex := map[string]string{"female": "F", "male": "M", "other": "UNK"}[c.gender]
	const usCore = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"
	category := func(name string, v coded) object {
		return object{"extension", list{
			object{"url", "ombCategory", "valueCoding", coding("urn:oid:2.16.840.1.113883.6.238", v.code, v.display)},
			object{"url", "text", "valueString", v.display},
		}, "url", usCore + name}
	}
	c.entries = append(c.entries, entry("Patient", c.id, object{
		"text", object{"status", "generated", "div", fmt.Sprintf(
			`<div xmlns="http://www.w3.org/1999/xhtml"><p>%s, born %s, lives in %s.</p></div>`,
			html.EscapeString(c.self.display), day(c.born), html.EscapeString(city.name))},
		"extension", list{
			category("race", c.people.race),
			category("ethnicity", c.people.ethnicity),
			object{"url", usCore + "birthsex", "valueCode", birthSex},
		},
		"identifier", list{
			object{"use", "usual", "type", concept(terminology("v2-0203"), "MR", "Medical Record Number"),
				"system", "http://example.org/mrn", "value", fmt.Sprintf("LCH-%07d", 1000003+7*c.number)},
			object{"use", "official", "type", concept(terminology("v2-0203"), "SS", "Social Security Number"),
				"system", "http://hl7.org/fhir/sid/us-ssn", "value", fmt.Sprintf("999-%02d-%04d", c.between(10, 99), c.between(1, 9999))},
		},
		"active", true,
		"name", names,
		"telecom", telecom,
		"gender", c.gender,
		"birthDate", day(c.born),
		"_birthDate", bornAt,
		"deceasedDateTime", died,
		"address", list{home},
		"maritalStatus", c.maritalStatus(),
		"communication", list{object{"language", concept("urn:ietf:bcp:47", "en-US", "English (United States)"), "preferred", true}},
		"generalPractitioner", list{c.organisation.json()},
		"managingOrganization", c.organisation.json(),
	}))

	if c.age(generatedAt()) < 18 || c.chance(20) {
		relation := coded{"PRN", "parent"}
		if c.age(generatedAt()) >= 18 {
			relation = pick(c.dice, []coded{{"SPS", "spouse"}, {"CHILD", "child"}, {"SIB", "sibling"}})
		}
		c.add("RelatedPerson", "", object{
			"active", true,
			"patient", c.self.json(),
			"relationship", list{concept(terminology("v3-RoleCode"), relation.code, relation.display)},
			"name", list{object{"family", family.latin, "given", list{pick(c.dice, c.people.given("other")).latin}}},
			"telecom", list{c.phone(city.area, "mobile")},
		})
	}
}

func (c *chart) maritalStatus() any {
	if c.age(generatedAt()) < 18 {
		return nil
	}
	s := pick(c.dice, []coded{{"M", "Married"}, {"S", "Never Married"}, {"D", "Divorced"}, {"W", "Widowed"}})
	return concept(terminology("v3-MaritalStatus"), s.code, s.display)
}

func firstLetters(name string) string {
	letters := []rune(name)
	return string(letters[:min(3, len(letters))])
}

func (c *chart) coverage() {
	kind := pick(c.dice, []coded{{"HMO", "health maintenance organization policy"}, {"PPO", "preferred provider organization policy"}, {"PUBLICPOL", "public healthcare"}})
	member := fmt.Sprintf("MM%09d", c.IntN(1e9))
	c.add("Coverage", "", object{
		"identifier", list{object{"type", concept(terminology("v2-0203"), "MB", "Member Number"),
			"system", "http://example.org/member", "value", member}},
		"status", "active",
		"type", concept(terminology("v3-ActCode"), kind.code, kind.display),
		"subscriberId", member,
		"beneficiary", c.self.json(),
		"relationship", concept(terminology("subscriber-relationship"), "self", "Self"),
		"period", object{"start", fmt.Sprintf("%d-01-01", c.between(2019, 2024))},
		"payor", list{c.payer.json()},
	})
}

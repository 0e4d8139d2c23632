package demo

import (
	"fmt"
	"strings"
	"time"
)

// illness is a problem with what belongs to it. Codes are SNOMED CT, ICD-10-CM and RxNorm.
type illness struct {
	code, icd, name string
	medicine        coded
	dose            string
	chronic         bool
	from, to        int // ages
	percent         int // of the people of these ages
}

var illnesses = []illness{
	{"38341003", "I10", "Hypertensive disorder", coded{"314076", "lisinopril 10 MG Oral Tablet"}, "1 tablet every morning", true, 35, 120, 42},
	{"44054006", "E11.9", "Diabetes mellitus type 2", coded{"860975", "24 HR metformin hydrochloride 500 MG Extended Release Oral Tablet"}, "1 tablet twice a day with meals", true, 40, 120, 20},
	{"55822004", "E78.5", "Hyperlipidemia", coded{"312961", "simvastatin 20 MG Oral Tablet"}, "1 tablet at bedtime", true, 38, 120, 35},
	{"195967001", "J45.909", "Asthma", coded{"745679", "albuterol 0.09 MG/ACTUAT Metered Dose Inhaler"}, "2 puffs every 4 to 6 hours as needed", true, 4, 120, 12},
	{"35489007", "F32.A", "Depressive disorder", coded{"312941", "sertraline 50 MG Oral Tablet"}, "1 tablet daily", true, 16, 120, 14},
	{"239873007", "M17.9", "Osteoarthritis of knee", coded{"310965", "ibuprofen 200 MG Oral Tablet"}, "2 tablets every 8 hours as needed", true, 50, 120, 25},
	{"40930008", "E03.9", "Hypothyroidism", coded{"892246", "levothyroxine sodium 0.1 MG Oral Tablet"}, "1 tablet on an empty stomach", true, 30, 120, 9},
	{"235595009", "K21.9", "Gastroesophageal reflux disease", coded{"198051", "omeprazole 20 MG Delayed Release Oral Capsule"}, "1 capsule before breakfast", true, 25, 120, 18},
	{"37796009", "G43.909", "Migraine", coded{"313782", "acetaminophen 325 MG Oral Tablet"}, "2 tablets at onset", true, 14, 70, 11},
	{"271737000", "D64.9", "Anemia", coded{"310325", "ferrous sulfate 325 MG Oral Tablet"}, "1 tablet daily", false, 12, 120, 10},
	{"10509002", "J20.9", "Acute bronchitis", coded{"308192", "amoxicillin 500 MG Oral Tablet"}, "1 tablet every 8 hours for 7 days", false, 1, 120, 28},
	{"195662009", "J02.9", "Acute viral pharyngitis", coded{"313782", "acetaminophen 325 MG Oral Tablet"}, "1 tablet every 6 hours as needed", false, 2, 120, 30},
	{"65363002", "H66.90", "Otitis media", coded{"308192", "amoxicillin 500 MG Oral Tablet"}, "half a tablet every 12 hours for 10 days", false, 0, 14, 45},
}

// measure is something measured, with the range of its values and the normal one.
type measure struct {
	code, name, unit, ucum string
	low, high              float64
	places                 int
	normLow, normHigh      decimal
}

var (
	vitals = []measure{
		{"8867-4", "Heart rate", "beats/minute", "/min", 54, 104, 0, "60", "100"},
		{"8310-5", "Body temperature", "degF", "[degF]", 97.1, 101.3, 2, "97.0", "99.0"},
		{"9279-1", "Respiratory rate", "breaths/minute", "/min", 12, 22, 0, "12", "20"},
		{"59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry", "%", "%", 93, 100, 1, "95", "100"},
	}
	panels = []struct {
		code, name string
		measures   []measure
	}{
		{"51990-0", "Basic metabolic panel - Blood", []measure{
			{"2345-7", "Glucose [Mass/volume] in Serum or Plasma", "mg/dL", "mg/dL", 70, 190, 0, "70", "99"},
			{"2160-0", "Creatinine [Mass/volume] in Serum or Plasma", "mg/dL", "mg/dL", 0.6, 1.6, 2, "0.60", "1.30"},
			{"2951-2", "Sodium [Moles/volume] in Serum or Plasma", "mmol/L", "mmol/L", 132, 147, 0, "136", "145"},
			{"2823-3", "Potassium [Moles/volume] in Serum or Plasma", "mmol/L", "mmol/L", 3.2, 5.4, 1, "3.5", "5.1"},
		}},
		{"57698-3", "Lipid panel with direct LDL - Serum or Plasma", []measure{
			{"2093-3", "Cholesterol [Mass/volume] in Serum or Plasma", "mg/dL", "mg/dL", 130, 270, 0, "0", "200"},
			{"2085-9", "Cholesterol in HDL [Mass/volume] in Serum or Plasma", "mg/dL", "mg/dL", 30, 85, 0, "40", "100"},
			{"18262-6", "Cholesterol in LDL [Mass/volume] in Serum or Plasma by Direct assay", "mg/dL", "mg/dL", 55, 190, 0, "0", "130"},
			{"2571-8", "Triglyceride [Mass/volume] in Serum or Plasma", "mg/dL", "mg/dL", 60, 290, 0, "0", "150"},
		}},
		{"58410-2", "CBC panel - Blood by Automated count", []measure{
			{"718-7", "Hemoglobin [Mass/volume] in Blood", "g/dL", "g/dL", 10.2, 17.4, 1, "12.0", "17.5"},
			{"4544-3", "Hematocrit [Volume Fraction] of Blood by Automated count", "%", "%", 33, 52, 1, "36.0", "50.0"},
			{"6690-2", "Leukocytes [#/volume] in Blood by Automated count", "10*3/uL", "10*3/uL", 3.2, 13.9, 2, "4.50", "11.00"},
			{"777-3", "Platelets [#/volume] in Blood by Automated count", "10*3/uL", "10*3/uL", 130, 440, 0, "150", "400"},
		}},
	}
	a1c = measure{"4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", "%", 5.8, 9.6, 2, "4.00", "5.60"}

	vaccines = []struct {
		coded
		from, to int
	}{
		{coded{"140", "Influenza, seasonal, injectable, preservative free"}, 0, 120},
		{coded{"208", "COVID-19, mRNA, LNP-S, PF, 30 mcg/0.3 mL dose"}, 12, 120},
		{coded{"113", "Td (adult), 5 Lf tetanus toxoid, preservative free, adsorbed"}, 18, 120},
		{coded{"133", "Pneumococcal conjugate PCV 13"}, 65, 120},
		{coded{"121", "zoster live"}, 50, 120},
		{coded{"03", "MMR"}, 1, 18},
		{coded{"20", "DTaP"}, 0, 7},
		{coded{"10", "IPV"}, 0, 18},
		{coded{"21", "varicella"}, 1, 18},
	}
	allergens = []struct {
		coded
		category string
	}{
		{coded{"764146007", "Penicillin"}, "medication"}, {coded{"387207008", "Ibuprofen"}, "medication"},
		{coded{"256349002", "Peanut - dietary"}, "food"}, {coded{"102263004", "Eggs"}, "food"},
		{coded{"256277009", "Grass pollen"}, "environment"}, {coded{"111088007", "Latex"}, "environment"},
	}
	reactions = []coded{
		{"271807003", "Eruption of skin"}, {"247472004", "Wheal"}, {"267036007", "Dyspnea"}, {"39579001", "Anaphylaxis"}, {"62315008", "Diarrhea"},
	}
	procedures = []coded{
		{"430193006", "Medication reconciliation"}, {"710824005", "Assessment of health and social care needs"}, {"73761001", "Colonoscopy"},
		{"399208008", "Plain X-ray of chest"}, {"23426006", "Measurement of respiratory function"}, {"117015009", "Throat culture"},
	}
	visitKinds = []struct {
		class, classDisplay string
		kind                coded
		hospital            bool
	}{
		{"AMB", "ambulatory", coded{"185349003", "Encounter for check up"}, false},
		{"AMB", "ambulatory", coded{"185345009", "Encounter for symptom"}, false},
		{"AMB", "ambulatory", coded{"390906007", "Follow-up encounter"}, false},
		{"VR", "virtual", coded{"448337001", "Telemedicine consultation with patient"}, false},
		{"EMER", "emergency", coded{"50849002", "Emergency room admission"}, true},
	}
)

// illnesses picks at most four, at least one.
func (c *chart) illnesses() []*illness {
	var out []*illness
	age := c.age(c.end())
	for i := range illnesses {
		ill := &illnesses[i]
		if len(out) < 4 && age >= ill.from && age <= ill.to && c.chance(ill.percent) {
			out = append(out, ill)
		}
	}
	if len(out) == 0 {
		out = append(out, &illnesses[len(illnesses)-2])
	}
	return out
}

// encounters adds 1 to 4 visits in the last three years of the record, or since birth, the oldest first.
func (c *chart) encounters(ill []*illness) {
	n := c.between(1, 4)
	days := min(3*365, int(c.end().Sub(c.born).Hours()/24)-1)
	for i := range n {
		at := c.end().AddDate(0, 0, -days+days*i/n+c.IntN(max(days/n, 1))).Add(time.Duration(c.between(13*60, 21*60)) * time.Minute)
		if at.After(c.end()) {
			at = c.end().Add(-time.Hour)
		}
		kind := pick(c.dice, visitKinds)
		doctor := c.doctor
		if i > 0 && c.chance(30) {
			doctor = pick(c.dice, c.doctors)
		}
		place := c.locations[0]
		if kind.hospital {
			place = c.locations[1]
		}
		v := visit{at: at, doctor: doctor, reason: ill[i%len(ill)]}
		until := at.Add(time.Duration(c.between(15, 90)) * time.Minute)
		v.reference = c.add("Encounter", kind.kind.display, object{
			"identifier", list{identifier("http://example.org/visit", fmt.Sprintf("V%07d-%d", c.number+1, i+1))},
			"status", "finished",
			"class", coding(terminology("v3-ActCode"), kind.class, kind.classDisplay),
			"type", list{concept(snomed, kind.kind.code, kind.kind.display)},
			"subject", c.self.json(),
			"participant", list{object{
				"type", list{concept(terminology("v3-ParticipationType"), "PPRF", "primary performer")},
				"period", object{"start", c.stamp(at), "end", c.stamp(until)},
				"individual", doctor.json(),
			}},
			"period", object{"start", c.stamp(at), "end", c.stamp(until)},
			"reasonCode", list{concept(snomed, v.reason.code, v.reason.name)},
			"location", list{object{"location", place.json()}},
			"serviceProvider", c.organisation.json(),
		})
		c.visits = append(c.visits, v)
	}
}

// careTeam is the primary doctor's, with the nurse where she belongs.
func (c *chart) careTeam() {
	member := func(role coded, who reference) object {
		return object{"role", list{concept(snomed, role.code, role.display)}, "member", who.json()}
	}
	members := list{member(coded{"453231000124104", "Primary care provider"}, c.doctor)}
	if c.okafor() {
		members = append(members, member(coded{"224535009", "Registered nurse"}, c.site.okafor))
	}
	members = append(members, member(coded{"116154003", "Patient"}, c.self))
	c.add("CareTeam", "Care team", object{
		"status", "active",
		"name", "Care team of " + c.self.display,
		"subject", c.self.json(),
		"period", object{"start", day(c.visits[0].at)},
		"participant", members,
		"managingOrganization", list{c.organisation.json()},
	})
}

func (c *chart) clinical(ill []*illness) {
	for _, x := range ill {
		c.condition(x)
	}
	height := c.decimal(149, 193, 1)
	if age := c.age(c.end()); age < 18 {
		height = c.decimal(55+6*float64(age), 62+6.6*float64(age), 1)
	}
	for i, v := range c.visits[max(0, len(c.visits)-3):] {
		if i == 0 {
			c.observe(v, "vital-signs", measure{"8302-2", "Body height", "cm", "cm", 0, 0, 0, "", ""}, height)
		}
		c.vitalSigns(v)
	}
	last := c.visits[len(c.visits)-1]
	c.smoking(last)
	c.labs(last, ill)
	c.allergies()
	c.immunisations()
	for _, p := range some(c.dice, c.between(1, 2), procedures) {
		v := pick(c.dice, c.visits)
		c.add("Procedure", p.display, object{
			"status", "completed",
			"code", concept(snomed, p.code, p.display),
			"subject", c.self.json(),
			"encounter", v.json(),
			"performedPeriod", object{"start", c.stamp(v.at), "end", c.stamp(v.at.Add(20 * time.Minute))},
			"performer", list{object{"actor", v.doctor.json()}},
		})
	}
	for _, v := range c.visits[max(0, len(c.visits)-2):] {
		c.note(v, ill)
	}
}

func (c *chart) condition(ill *illness) {
	v := pick(c.dice, c.visits)
	for _, w := range c.visits {
		if w.reason == ill {
			v = w
			break
		}
	}
	onset := v.at.AddDate(0, 0, -c.between(1, 9))
	category, status := coded{"encounter-diagnosis", "Encounter Diagnosis"}, "resolved"
	var abated any
	if ill.chronic {
		onset = v.at.AddDate(0, 0, -c.between(30, 2500))
		category, status = coded{"problem-list-item", "Problem List Item"}, "active"
	} else {
		abated = day(v.at.AddDate(0, 0, c.between(5, 20)))
	}
	if onset.Before(c.born) {
		onset = c.born
	}
	code := object{"coding", list{coding(snomed, ill.code, ill.name), coding(icd10, ill.icd, "")}, "text", ill.name}
	is := c.add("Condition", ill.name, object{
		"clinicalStatus", concept(terminology("condition-clinical"), status, ""),
		"verificationStatus", concept(terminology("condition-ver-status"), "confirmed", ""),
		"category", list{concept(terminology("condition-category"), category.code, category.display)},
		"code", code,
		"subject", c.self.json(),
		"encounter", v.json(),
		"onsetDateTime", day(onset),
		"abatementDateTime", abated,
		"recordedDate", day(v.at),
		"recorder", v.doctor.json(),
	})
	state := "completed"
	if ill.chronic && c.died.IsZero() {
		state = "active"
	}
	c.add("MedicationRequest", ill.medicine.display, object{
		"status", state,
		"intent", "order",
		"medicationCodeableConcept", concept(rxnorm, ill.medicine.code, ill.medicine.display),
		"subject", c.self.json(),
		"encounter", v.json(),
		"authoredOn", c.stamp(v.at.Add(10 * time.Minute)),
		"requester", v.doctor.json(),
		"reasonReference", list{is.json()},
		"dosageInstruction", list{object{"sequence", 1, "text", ill.dose}},
		"dispenseRequest", object{
			"numberOfRepeatsAllowed", c.between(0, 3),
			"quantity", quantity(decimal(fmt.Sprint(c.between(1, 9)*10)), "tablets", "{tbl}"),
			"expectedSupplyDuration", quantity("30", "days", "d"),
		},
	})
}

// observe adds one Observation with a quantity.
func (c *chart) observe(v visit, category string, m measure, value decimal) reference {
	performer := v.doctor
	if category == "laboratory" {
		performer = c.organisation
	}
	var usual any
	if m.normHigh != "" {
		usual = list{object{"low", quantity(m.normLow, m.unit, m.ucum), "high", quantity(m.normHigh, m.unit, m.ucum)}}
	}
	return c.add("Observation", m.name, object{
		"status", "final",
		"category", list{concept(terminology("observation-category"), category, "")},
		"code", concept(loinc, m.code, m.name),
		"subject", c.self.json(),
		"encounter", v.json(),
		"effectiveDateTime", c.stamp(v.at),
		"issued", v.at.Add(time.Hour).In(c.zone).Format("2006-01-02T15:04:05.000Z07:00"),
		"performer", list{performer.json()},
		"valueQuantity", quantity(value, m.unit, m.ucum),
		"referenceRange", usual,
	})
}

func (c *chart) vitalSigns(v visit) {
	weight := measure{"29463-7", "Body weight", "kg", "kg", 48, 118, 2, "", ""}
	if age := float64(c.age(v.at)); age < 18 {
		weight.low, weight.high = 4+2.6*age, 6+3.6*age
	}
	c.observe(v, "vital-signs", weight, c.decimal(weight.low, weight.high, weight.places))
	part := func(code, name string, low, high float64) object {
		return object{"code", concept(loinc, code, name), "valueQuantity", quantity(c.decimal(low, high, 0), "mmHg", "mm[Hg]")}
	}
	c.add("Observation", "Blood pressure", object{
		"status", "final",
		"category", list{concept(terminology("observation-category"), "vital-signs", "Vital Signs")},
		"code", concept(loinc, "85354-9", "Blood pressure panel with all children optional"),
		"subject", c.self.json(),
		"encounter", v.json(),
		"effectiveDateTime", c.stamp(v.at),
		"performer", list{v.doctor.json()},
		"component", list{
			part("8480-6", "Systolic blood pressure", 98, 168),
			part("8462-4", "Diastolic blood pressure", 58, 97),
		},
	})
	for _, m := range some(c.dice, 2, vitals) {
		c.observe(v, "vital-signs", m, c.decimal(m.low, m.high, m.places))
	}
}

func (c *chart) smoking(v visit) {
	if c.age(v.at) < 13 {
		return
	}
	s := pick(c.dice, []coded{{"266919005", "Never smoked tobacco"}, {"8517006", "Ex-smoker"}, {"449868002", "Smokes tobacco daily"}})
	c.add("Observation", "Tobacco smoking status", object{
		"status", "final",
		"category", list{concept(terminology("observation-category"), "social-history", "Social History")},
		"code", concept(loinc, "72166-2", "Tobacco smoking status"),
		"subject", c.self.json(),
		"encounter", v.json(),
		"effectiveDateTime", c.stamp(v.at),
		"performer", list{v.doctor.json()},
		"valueCodeableConcept", concept(snomed, s.code, s.display),
	})
}

// labs adds one or two panels, each a DiagnosticReport with its results and a conclusion in words.
func (c *chart) labs(v visit, ill []*illness) {
	for i, panel := range some(c.dice, c.between(1, 2), panels) {
		measures := panel.measures
		for _, x := range ill {
			if i == 0 && x.code == "44054006" {
				measures = append(append([]measure{}, measures...), a1c)
			}
		}
		var results list
		var words []string
		for _, m := range measures {
			value := c.decimal(m.low, m.high, m.places)
			r := c.observe(v, "laboratory", m, value)
			results = append(results, r.json())
			name, _, _ := strings.Cut(m.name, " [")
			words = append(words, fmt.Sprintf("%s %s %s", name, value, m.unit))
		}
		c.add("DiagnosticReport", panel.name, object{
			"status", "final",
			"category", list{concept(terminology("v2-0074"), "LAB", "Laboratory")},
			"code", concept(loinc, panel.code, panel.name),
			"subject", c.self.json(),
			"encounter", v.json(),
			"effectiveDateTime", c.stamp(v.at),
			"issued", v.at.Add(2 * time.Hour).In(c.zone).Format("2006-01-02T15:04:05.000Z07:00"),
			"performer", list{c.organisation.json()},
			"resultsInterpreter", list{v.doctor.json()},
			"result", results,
			"conclusion", fmt.Sprintf("Results for %s: %s. Discussed with the patient; repeat in %d months.",
				c.self.display, strings.Join(words, ", "), c.between(3, 12)),
		})
	}
}

func (c *chart) allergies() {
	if c.chance(55) {
		return
	}
	for _, a := range some(c.dice, c.between(1, 2), allergens) {
		r := pick(c.dice, reactions)
		c.add("AllergyIntolerance", a.display, object{
			"clinicalStatus", concept(terminology("allergyintolerance-clinical"), "active", "Active"),
			"verificationStatus", concept(terminology("allergyintolerance-verification"), "confirmed", "Confirmed"),
			"type", "allergy",
			"category", list{a.category},
			"criticality", pick(c.dice, []string{"low", "high", "unable-to-assess"}),
			"code", concept(snomed, a.code, a.display),
			"patient", c.self.json(),
			"recordedDate", day(c.visits[0].at),
			"recorder", c.visits[0].doctor.json(),
			"reaction", list{object{
				"manifestation", list{concept(snomed, r.code, r.display)},
				"severity", pick(c.dice, []string{"mild", "moderate", "severe"}),
			}},
		})
	}
}

func (c *chart) immunisations() {
	given := 0
	for _, x := range vaccines {
		if age := c.age(c.end()); age < x.from || age > x.to || given == 4 || !c.chance(75) {
			continue
		}
		given++
		v := pick(c.dice, c.visits)
		c.add("Immunization", x.display, object{
			"status", "completed",
			"vaccineCode", concept(cvx, x.code, x.display),
			"patient", c.self.json(),
			"encounter", v.json(),
			"occurrenceDateTime", c.stamp(v.at),
			"primarySource", true,
			"location", c.locations[0].json(),
			"lotNumber", fmt.Sprintf("L%05d", c.IntN(1e5)),
		})
	}
}

// note is what the doctor wrote, as an attachment.
func (c *chart) note(v visit, ill []*illness) {
	var problems []string
	for _, x := range ill {
		problems = append(problems, strings.ToLower(x.name))
	}
	text := fmt.Sprintf("Progress note, %s\n\n%s, %d years old, was seen because of %s.\nKnown problems: %s.\n%s\n\nSigned: %s\n",
		day(v.at), c.self.display, c.age(v.at), strings.ToLower(v.reason.name), strings.Join(problems, ", "),
		pick(c.dice, []string{
			"Feels well, sleeps badly. No change of treatment; return in three months.",
			"Reports tiredness for two weeks. Blood was taken, results will be telephoned.",
			"Symptoms are improving. Advised fluids, rest, and to come back if fever returns.",
			"Worried about work and housing; the social worker will call.",
		}), v.doctor.display)
	c.add("DocumentReference", "Progress note", object{
		"status", "current",
		"docStatus", "final",
		"type", concept(loinc, "11506-3", "Progress note"),
		"category", list{concept("http://hl7.org/fhir/us/core/CodeSystem/us-core-documentreference-category", "clinical-note", "Clinical Note")},
		"subject", c.self.json(),
		"date", c.stamp(v.at.Add(30 * time.Minute)),
		"author", list{v.doctor.json()},
		"content", list{object{"attachment", object{
			"contentType", "text/plain; charset=utf-8",
			"data", document(text),
			"title", "Progress note",
		}}},
		"context", object{"encounter", list{v.json()}, "period", object{"start", c.stamp(v.at)}},
	})
}

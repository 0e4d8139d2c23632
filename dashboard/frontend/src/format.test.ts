import { expect, test } from 'vitest';

import type { Event } from './api';
import { duration, outcome, purpose, sentence, utc, what, who } from './format';

const event: Event = {
  id: 'i', recorded: '2026-11-22T02:49:26.123456Z', ingested: '2026-11-22T02:49:27Z', type: 'rest', interaction: 'read', action: 'R', outcome: 0, searched: false,
  agent: { user: 'dr-rivera', name: 'Dr. Ana Rivera', client: 'my-app' }, purpose: 'TREAT', patient: 'p1', entities: [{ type: 'Patient', id: 'p1', version: 2 }],
  classes: ['name'], decision: { allowed: true, rule: 'clinician/treatment' }, timing: { total: 412, auth: 0, decision: 0, database: 0, crypto: 0, audit: 0 },
  stream: 's', seq: 1, leaf: 'l',
};

test('times are UTC whatever zone they come in', () => {
  expect(utc('2026-11-22T02:49:26.123456Z')).toBe('2026-11-22 02:49:26.123 UTC');
  expect(utc('2026-11-22T02:49:26+01:00')).toBe('2026-11-22 01:49:26.000 UTC');
  expect(utc('soon')).toBe('unknown time');
});

test.each([[0, '–'], [1, '1 µs'], [999, '999 µs'], [1000, '1.00 ms'], [12_345, '12.3 ms'], [2_500_000, '2.50 s']])('%i µs is %s', (micros, said) => {
  expect(duration(micros)).toBe(said);
});

test('every outcome has its own word', () => {
  const words = [-1, 0, 4, 8, 12, 99].map((v) => outcome(v).word);
  expect(new Set(words).size).toBe(words.length);
});

test('purposes that we do not know are shown as they are', () => {
  expect(purpose('TREAT')).toBe('treatment (TREAT)');
  expect(purpose('XYZ')).toBe('XYZ');
});

test('an event in words', () => {
  expect(sentence(event)).toBe(
    'Dr. Ana Rivera, through my-app, asked for read of Patient/p1 for patient p1 for treatment (TREAT); it was allowed, with outcome success.',
  );
  expect(sentence({ ...event, outcome: -1 })).not.toContain('outcome');
  expect(who({ ...event, agent: {} })).toBe('nobody signed in');
  expect(what({ ...event, entities: [] })).toBe('');
  expect(what({ ...event, entities: [{ type: 'AuditEvent' }, { type: 'Patient' }] })).toBe('AuditEvent +1');
});

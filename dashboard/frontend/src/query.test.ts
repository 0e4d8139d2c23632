import { describe, expect, test } from 'vitest';

import { fields, parseQuery, queryFor } from './query';

describe('parseQuery', () => {
  test.each([
    ['', {}],
    ['   ', {}],
    ['glucose', { q: 'glucose' }],
    ['two words', { q: 'two words' }],
    ['patient:abc agent:dr-rivera', { patient: 'abc', agent: 'dr-rivera' }],
    ['patient:Patient/abc', { patient: 'abc' }],
    ['Patient:abc', { patient: 'abc' }],
    ['  request_id:r-1   slow read ', { request_id: 'r-1', q: 'slow read' }],
    ['agent:"two words" x', { agent: 'two words', q: 'x' }],
    ['"a:b"', { q: '"a:b"' }],
    ['outcome:refused', { outcome: '4' }],
    ['outcome:-1', { outcome: '-1' }],
    ['action:r', { action: 'R' }],
    ['from:2026-11-22', { from: '2026-11-22T00:00:00Z' }],
    ['from:2026-11-22T08:30', { from: '2026-11-22T08:30:00Z' }],
    ['to:2026-11-22T08:30:00+01:00', { to: '2026-11-22T08:30:00+01:00' }],
    ['entity:Observation/1', { entity: 'Observation/1' }],
  ])('%j', (input, filters) => {
    expect(parseQuery(input)).toEqual({ filters });
  });

  test.each([
    ['nobody:x', 0, /no field nobody/],
    ['a __proto__:x', 2, /no field/],
    ['constructor:x', 0, /no field/],
    ['patient:a patient:b', 10, /twice/],
    ['patient:', 0, /no value/],
    ['patient: abc', 0, /no value/],
    ['patient:"abc', 0, /not closed/],
    ['x "abc', 2, /not closed/],
    ['outcome:good', 0, /does not fit/],
    ['outcome:constructor', 0, /does not fit/],
    ['action:X', 0, /does not fit/],
    ['from:yesterday', 0, /does not fit/],
    ['from:2026-02-30', 0, /does not fit/],
    ['from:2026-11-22T25:00', 0, /does not fit/],
    ['urn:a:b', 0, /no field urn/],
    ['12:30', 0, /quotes/],
  ])('%j is an error at %i', (input, at, message) => {
    const got = parseQuery(input);
    expect(got).toMatchObject({ at });
    expect((got as { message: string }).message).toMatch(message);
  });

  test('a value survives the way into the query bar and back', () => {
    for (const name of ['patient', 'agent', 'request_id', 'client', 'interaction', 'entity'] as const) {
      for (const value of ['abc', 'a b', 'a:b', 'Observation/1', 'ünï']) {
        expect(parseQuery(queryFor(name, value))).toEqual({ filters: { [name]: fields[name]?.parse(value) } });
      }
    }
  });
});

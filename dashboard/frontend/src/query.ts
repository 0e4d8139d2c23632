/** The query bar's language: words, and field:value pairs, all of which must hold. Values with spaces or colons are quoted. */

export interface Query {
  /** Parameters of GET /v1/audit/events. */
  filters: Record<string, string>;
}

/** What is wrong with a query, and where: offset of the first character of the faulty part. */
export interface QueryError {
  message: string;
  at: number;
}

export const outcomes: Record<string, string> = { success: '0', refused: '4', failed: '8', broken: '12', intent: '-1' };

const text = (v: string) => v;
function outcome(v: string): string | undefined {
  const word = v.toLowerCase();
  if (Object.hasOwn(outcomes, word)) return outcomes[word];
  return Object.values(outcomes).includes(v) ? v : undefined;
}

function instant(v: string): string | undefined {
  const day = /^\d{4}-\d{2}-\d{2}$/.test(v);
  const whole = day ? `${v}T00:00:00Z` : /T\d{2}:\d{2}$/.test(v) ? `${v}:00Z` : v;
  // Date knows the calendar but takes much that is not RFC 3339; the shape is checked here.
  if (!/^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})$/.test(whole)) return undefined;
  const at = new Date(whole);
  if (Number.isNaN(at.getTime())) return undefined;
  if (day && at.toISOString().slice(0, 10) !== v) return undefined; // 30 February
  return whole;
}

interface Field {
  /** The API's word for a value; undefined when it is none. */
  parse: (value: string) => string | undefined;
  hint: string;
}

export const fields: Record<string, Field> = {
  request_id: { parse: text, hint: 'id of a request' },
  patient: { parse: (v) => v.replace(/^Patient\//, ''), hint: 'id of a patient' },
  agent: { parse: text, hint: 'who, e.g. dr-rivera' },
  client: { parse: text, hint: 'client application' },
  interaction: { parse: text, hint: 'e.g. read, search-type, create' },
  type: { parse: text, hint: 'rest, or a DICOM code like 110114' },
  action: { parse: (v) => (/^[CRUDE]$/i.test(v) ? v.toUpperCase() : undefined), hint: 'C, R, U, D or E' },
  outcome: { parse: outcome, hint: Object.keys(outcomes).join(', ') },
  entity: { parse: text, hint: 'Type or Type/id' },
  from: { parse: instant, hint: 'a day or time in UTC, e.g. 2026-11-22 or 2026-11-22T08:30' },
  to: { parse: instant, hint: 'a day or time in UTC, e.g. 2026-11-22 or 2026-11-22T08:30' },
};

// A part is an optional field: and a value, quoted or bare. An unclosed quote runs to the end and is reported.
const part = /\s*(?:([A-Za-z_]+):)?(?:"([^"]*)("?)|(\S*))/y;

/** Parses the query bar. */
export function parseQuery(input: string): Query | QueryError {
  const filters: Record<string, string> = {};
  const words: string[] = [];
  part.lastIndex = 0;
  while (part.lastIndex < input.trimEnd().length) {
    const start = part.lastIndex + (/^\s*/.exec(input.slice(part.lastIndex))?.[0].length ?? 0);
    const [, name, quoted, close, bare] = part.exec(input) ?? [];
    if (quoted !== undefined && !close) return { message: 'This quote is not closed.', at: start };
    const value = quoted ?? bare ?? '';
    if (name === undefined) {
      if (bare?.includes(':')) return { message: 'Put quotes around words with a colon.', at: start };
      if (value) words.push(value);
      continue;
    }
    const field = Object.hasOwn(fields, name.toLowerCase()) ? fields[name.toLowerCase()] : undefined;
    if (!field) return { message: `There is no field ${name}. Fields are ${Object.keys(fields).join(', ')}.`, at: start };
    if (name.toLowerCase() in filters) return { message: `${name} comes twice.`, at: start };
    if (!value) return { message: `${name} has no value: ${field.hint}.`, at: start };
    const parsed = field.parse(value);
    if (parsed === undefined) return { message: `${value} does not fit ${name}: ${field.hint}.`, at: start };
    filters[name.toLowerCase()] = parsed;
  }
  // The API's own query language reads the words: what would mean something in it stands in quotes.
  if (words.length) filters.q = words.map((w) => (/[:"\\]|^-/.test(w) ? `"${w.replace(/["\\]/g, '\\$&')}"` : w)).join(' ');
  return { filters };
}

/** The query that shows what has this value of a field, ready for the query bar. */
export function queryFor(name: string, value: string): string {
  return `${name}:${/[\s":]/.test(value) ? `"${value.replaceAll('"', '')}"` : value}`;
}

import type { Event } from './api';

/** 2026-11-22 02:49:26.123 UTC. Milliseconds, because officers compare with other systems' logs. */
export function utc(time: string): string {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return 'unknown time';
  return `${at.toISOString().replace('T', ' ').replace('Z', '')} UTC`;
}

/** Microseconds in a unit that fits. 0 is not known. */
export function duration(micros: number): string {
  if (micros <= 0) return '–';
  if (micros < 1000) return `${micros} µs`;
  if (micros < 1_000_000) return `${(micros / 1000).toPrecision(3)} ms`;
  return `${(micros / 1_000_000).toPrecision(3)} s`;
}

/** A state in a word and a colour, never in a colour alone. */
export interface Verdict {
  word: string;
  color: string;
}

export function outcome(value: number): Verdict {
  switch (value) {
    case 0:
      return { word: 'success', color: 'teal' };
    case 4:
      return { word: 'refused', color: 'orange' };
    case 8:
      return { word: 'failed', color: 'red' };
    case 12:
      return { word: 'broken', color: 'red' };
    case -1:
      return { word: 'intent', color: 'blue' };
    default:
      return { word: `unknown (${value})`, color: 'gray' };
  }
}

export function decision(allowed: boolean): Verdict {
  return allowed ? { word: 'allowed', color: 'teal' } : { word: 'denied', color: 'orange' };
}

const types: Record<string, string> = {
  rest: 'RESTful operation',
  '110100': 'application activity',
  '110101': 'audit log used',
  '110107': 'import',
  '110113': 'security alert',
  '110114': 'user authentication',
  '110137': 'security attributes changed',
};

/** What kind of happening, in words. */
export const kind = (type: string): string => types[type] ?? type;

const purposes: Record<string, string> = {
  TREAT: 'treatment', HPAYMT: 'payment', HOPERAT: 'health care operations', PATRQT: 'the patient’s own request',
  HRESCH: 'research', BTG: 'an emergency (break-glass)',
};

export const purpose = (code: string): string => (purposes[code] ? `${purposes[code]} (${code})` : code);

export function who(e: Event): string {
  return e.agent.name || e.agent.user || 'nobody signed in';
}

/** The record that took part, e.g. Patient/123, and how many more there are. */
export function what(e: Event): string {
  const [first] = e.entities;
  if (!first) return '';
  const more = e.entities.length > 1 ? ` +${e.entities.length - 1}` : '';
  return `${first.type}${first.id ? `/${first.id}` : ''}${more}`;
}

/** One English sentence for the inspector. */
export function sentence(e: Event): string {
  const subject = `${who(e)}${e.agent.client ? `, through ${e.agent.client},` : ''}`;
  const object = [e.interaction || kind(e.type), what(e) && `of ${what(e)}`, e.patient && `for patient ${e.patient}`].filter(Boolean).join(' ');
  const aim = e.purpose ? ` for ${purpose(e.purpose)}` : '';
  const verb = e.outcome === -1 ? 'announced' : 'asked for';
  const end = e.outcome === -1 ? '' : `; it was ${decision(e.decision.allowed).word}, with outcome ${outcome(e.outcome).word}`;
  return `${subject} ${verb} ${object}${aim}${end}.`;
}

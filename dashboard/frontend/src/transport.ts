import type { EventPage, Problem } from './api';

/** What the dashboard's Go side says of this page's session. No token ever gets here. */
export interface Session {
  /** Subject of who is signed in; '' for nobody. */
  user: string;
  name: string;
  /** For a sign-in in the system browser. */
  waiting: boolean;
  /** Why nobody is signed in any more. */
  notice: string;
  server: string;
  /** Sign-in happens in the system browser, not in this tab. */
  window: boolean;
}

export interface Readiness {
  status: string;
  checks: Record<string, string>;
}

/** A refusal: of the API (RFC 9457) or of our Go side, which speaks the same. */
export class Refusal extends Error {
  override readonly name = 'Refusal';
  constructor(readonly problem: Problem) {
    super(problem.title);
  }
  /** The API cannot be reached; what is on screen may be old. */
  get offline(): boolean {
    return this.problem.type === 'urn:chartkeep:offline';
  }
  get signedOut(): boolean {
    return this.problem.status === 401;
  }
}

const unreachable: Problem = {
  type: 'urn:chartkeep:offline', title: 'The dashboard program does not answer.', status: 0, detail: '', request_id: '',
};

// The page's half of its session; the other half is a cookie that scripts cannot read. Storage belongs to one origin with
// its port, cookies do not: neither half alone is worth anything.
const storageKey = 'chartkeep-page';

async function beginPage(): Promise<string> {
  const res = await send('POST', '/session', '');
  const { page } = (await read(res)) as { page: string };
  localStorage.setItem(storageKey, page);
  return page;
}

function send(method: string, path: string, page: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = { 'X-Chartkeep-Page': page };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const init: RequestInit = { method, headers };
  if (body !== undefined) init.body = JSON.stringify(body);
  if (signal) init.signal = signal;
  return fetch(path, init).catch((e: unknown) => {
    if (signal?.aborted) throw e;
    throw new Refusal(unreachable);
  });
}

async function read(res: Response): Promise<unknown> {
  const body: unknown = await res.json().catch(() => null);
  if (!res.ok) {
    const problem: Problem = { ...unreachable, type: 'about:blank', title: `The server refused (${res.status}).`, status: res.status };
    throw new Refusal(body && typeof body === 'object' ? { ...problem, ...body } : problem);
  }
  return body;
}

async function call(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<unknown> {
  const page = localStorage.getItem(storageKey) ?? (await beginPage());
  try {
    return await read(await send(method, path, page, body, signal));
  } catch (e) {
    // The program was restarted, or this is another profile's leftover: begin anew, once.
    if (!(e instanceof Refusal) || e.problem.type !== 'urn:chartkeep:page') throw e;
    return read(await send(method, path, await beginPage(), body, signal));
  }
}

export const session = () => call('GET', '/session') as Promise<Session>;
/** Begins a sign-in; the URL is the issuer's page. */
export const signIn = () => call('POST', '/session/sign-in') as Promise<{ url: string }>;
/** Hands over what the issuer sent the browser back with. */
export const completeSignIn = (query: string) => call('POST', '/session/complete', { query }) as Promise<Session>;
export const cancelSignIn = () => call('POST', '/session/cancel') as Promise<Session>;
export const signOut = () => call('DELETE', '/session') as Promise<Session>;
export const readiness = (signal?: AbortSignal) => call('GET', '/api/readyz', undefined, signal) as Promise<Readiness>;

/** One page of events, newest first; cursor '' for the first. */
export function events(filters: Record<string, string>, cursor: string, signal?: AbortSignal): Promise<EventPage> {
  const query = new URLSearchParams({ ...filters, limit: '100' });
  if (cursor) query.set('cursor', cursor);
  return call('GET', `/api/v1/audit/events?${query}`, undefined, signal) as Promise<EventPage>;
}

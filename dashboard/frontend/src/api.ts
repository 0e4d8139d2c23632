// Made by api.js from server/rest/openapi.json. Do not edit.

export interface EventPage {
  events: Event[];
  /** Cursor of older events; empty when there are none */
  next: string;
  /** Cursor of newer events; empty on the newest page */
  prev: string;
  /** false: the page ended before it was full because looking took long; go on with next */
  complete: boolean;
  query: Query;
}

/** Problem details (RFC 9457). parameter, position and allowed say what is at fault, and never quote it */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  request_id: string;
  /** Event of the refusal, see /v1/decisions */
  decision_id?: string;
  /** Name of the parameter at fault */
  parameter?: string;
  /** Where in it, in characters from 0 */
  position?: number;
  /** What it takes */
  allowed?: string[];
}

export interface Event {
  id: string;
  recorded: string;
  /** Not known of events of the live trail */
  ingested?: string;
  /** True where recorded is not to be believed, because the clock of the instance was off */
  clock_suspect?: boolean;
  type: string;
  interaction: string;
  action: string;
  outcome: number;
  outcome_desc?: string;
  agent: Agent;
  purpose?: string;
  patient?: string;
  entities: Entity[];
  /** PHI classes touched */
  classes: string[];
  decision: Decision;
  request_id?: string;
  /** Id of the intent that this outcome belongs to */
  correlation?: string;
  timing: Timing;
  /** Stream of the instance, hex */
  stream: string;
  seq: number;
  /** Merkle leaf hash, hex */
  leaf: string;
  /** The event holds sealed search text */
  searched: boolean;
}

/** The query as it was understood */
export interface Query {
  /** In the query language */
  q: string;
  terms: Term[];
  /** Free text */
  text?: string;
  from?: string;
  to?: string;
}

export interface Agent {
  user?: string;
  name?: string;
  client?: string;
  session?: string;
  roles?: string[];
  network?: string;
  fhir_user?: string;
}

export interface Entity {
  type: string;
  id?: string;
  version?: number;
}

/** Why the access was allowed, or why not */
export interface Decision {
  allowed: boolean;
  rule?: string;
  reason?: string;
  view?: string;
  policy?: number;
}

/** Microseconds */
export interface Timing {
  total: number;
  auth: number;
  decision: number;
  database: number;
  crypto: number;
  audit: number;
}

export interface Term {
  field: string;
  op: "is" | "prefix" | "at least" | "below";
  not: boolean;
  values: string[];
}

// Made by api.js from server/rest/openapi.json. Do not edit.

export interface EventPage {
  events: Event[];
  /** Cursor of the next page; empty on the last */
  next: string;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  request_id: string;
}

export interface Event {
  id: string;
  recorded: string;
  ingested: string;
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

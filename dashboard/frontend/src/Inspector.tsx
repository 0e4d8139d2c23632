import { Anchor, Button, Code, Group, Stack, Text, Title } from '@mantine/core';
import type { ReactNode } from 'react';

import type { Event } from './api';
import { State } from './Explorer';
import { decision, duration, kind, outcome, purpose, sentence, utc } from './format';
import { queryFor } from './query';

interface Props {
  event: Event;
  onClose: () => void;
  /** Searches the trail for more of the same. */
  onQuery: (query: string) => void;
}

/** One event: who, what, why it was allowed, and its place in the log. */
export function Inspector({ event: e, onClose, onQuery }: Props) {
  const more = (name: string, value: string | undefined) =>
    value && <Anchor component="button" type="button" size="xs" ta="left" className="mono" onClick={() => onQuery(queryFor(name, value))}>{value}</Anchor>;
  const t = e.timing;
  return (
    <aside className="inspector" aria-label="Event">
      <Group justify="space-between" wrap="nowrap" align="start">
        <Title order={2} size="h5">Event</Title>
        <Button size="compact-xs" variant="default" onClick={onClose}>Close</Button>
      </Group>
      <Text size="sm" my="sm">{sentence(e)}</Text>
      <Stack gap="md">
        <Facts title={e.decision.allowed ? 'Why allowed' : 'Why denied'}>
          {fact('Decision', <State of={decision(e.decision.allowed)} />)}
          {fact('Rule', e.decision.rule && <Code>{e.decision.rule}</Code>)}
          {fact('Reason', e.decision.reason)}
          {fact('View', e.decision.view)}
          {fact('Purpose', e.purpose && purpose(e.purpose))}
          {fact('Policy version', e.decision.policy)}
        </Facts>
        <Facts title="Who">
          {fact('Name', e.agent.name)}
          {fact('User', more('agent', e.agent.user))}
          {fact('FHIR user', e.agent.fhir_user)}
          {fact('Roles', e.agent.roles?.join(', '))}
          {fact('Application', more('client', e.agent.client))}
          {fact('From', e.agent.network)}
          {fact('Session', e.agent.session)}
        </Facts>
        <Facts title="What">
          {fact('Recorded', utc(e.recorded))}
          {fact('Kind', kind(e.type))}
          {fact('Interaction', more('interaction', e.interaction))}
          {fact('Outcome', <><State of={outcome(e.outcome)} /> {e.outcome_desc}</>)}
          {fact('Patient', more('patient', e.patient))}
          {e.entities.map((n) => (
            <Fact key={`${n.type}/${n.id ?? ''}/${n.version ?? ''}`} name="Record">
              {more('entity', n.id ? `${n.type}/${n.id}` : n.type)}{n.version ? ` version ${n.version}` : ''}
            </Fact>
          ))}
          {fact('Fields touched', e.classes.join(', ') || 'none')}
        </Facts>
        <Facts title="Request">
          {fact('Request id', more('request_id', e.request_id))}
          {fact('Intent', e.correlation)}
          {fact('Took', duration(t.total))}
          {fact('Of which', ([['sign-in', t.auth], ['decision', t.decision], ['database', t.database], ['crypto', t.crypto], ['audit', t.audit]] as const)
            .filter(([, micros]) => micros > 0).map(([part, micros]) => `${part} ${duration(micros)}`).join(', '))}
        </Facts>
        <Facts title="Place in the log">
          {fact('Stream', <span className="mono">{e.stream}</span>)}
          {fact('Sequence', <span className="mono">{e.seq}</span>)}
          {fact('Leaf hash', <span className="mono">{e.leaf}</span>)}
          {e.ingested && fact('Stored', utc(e.ingested))}
          {fact('Event id', <span className="mono">{e.id}</span>)}
        </Facts>
      </Stack>
    </aside>
  );
}

function Facts({ title, children }: { title: string; children: ReactNode }) {
  return (
    <section aria-label={title}>
      <Title order={3} size="h6" mb={4}>{title}</Title>
      <dl className="facts">{children}</dl>
    </section>
  );
}

function Fact({ name, children }: { name: string; children: ReactNode }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </>
  );
}

/** A line, or nothing where the event does not say. */
function fact(name: string, value: ReactNode) {
  return value === undefined || value === '' || value === false ? null : <Fact name={name}>{value}</Fact>;
}

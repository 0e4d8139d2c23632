import { Alert, Badge, Button, Group, Kbd, Loader, Table, Text, TextInput } from '@mantine/core';
import { useHotkeys } from '@mantine/hooks';
import { useInfiniteQuery } from '@tanstack/react-query';
import { useEffect, useMemo, useRef, useState } from 'react';

import type { Event } from './api';
import { decision, duration, kind, outcome, utc, what, who, type Verdict } from './format';
import { Inspector } from './Inspector';
import { parseQuery } from './query';
import { events, Refusal } from './transport';

/** The trail, newest first: a query bar, rows, and the inspector of one of them. */
export function Explorer({ server, name, onSignedOut }: { server: string; name: string; onSignedOut: () => void }) {
  const [input, setInput] = useState('');
  const [asked, setAsked] = useState('');
  const [at, setAt] = useState(0);
  const [open, setOpen] = useState(false);
  const bar = useRef<HTMLInputElement>(null);
  const rows = useRef<HTMLDivElement>(null);

  const typed = useMemo(() => parseQuery(input), [input]);
  const filters = useMemo(() => {
    const q = parseQuery(asked);
    return 'filters' in q ? q.filters : {};
  }, [asked]);

  const trail = useInfiniteQuery({
    queryKey: ['events', filters],
    queryFn: ({ pageParam, signal }) => events(filters, pageParam, signal),
    initialPageParam: '',
    getNextPageParam: (last) => last.next || undefined,
  });
  const list = useMemo(() => trail.data?.pages.flatMap((p) => p.events) ?? [], [trail.data]);
  const chosen = list[at];
  const refusal = trail.error instanceof Refusal ? trail.error : undefined;
  const signedOut = refusal?.signedOut ?? false;
  useEffect(() => {
    if (signedOut) onSignedOut();
  }, [signedOut, onSignedOut]);

  const ask = (query: string) => {
    setInput(query);
    if (!('filters' in parseQuery(query))) return;
    setAt(0);
    setOpen(false);
    // Asking the same again means: look again.
    if (query.trim() === asked.trim()) void trail.refetch();
    else setAsked(query);
  };
  const move = (to: number) => {
    if (!list.length) return;
    const next = Math.max(0, Math.min(to, list.length - 1));
    setAt(next);
    rows.current?.querySelector<HTMLElement>(`[data-row="${next}"]`)?.focus();
  };
  useHotkeys([
    ['/', () => bar.current?.focus()],
    ['j', () => move(at + 1)],
    ['k', () => move(at - 1)],
    ['ArrowDown', () => move(at + 1)],
    ['ArrowUp', () => move(at - 1)],
    ['Home', () => move(0)],
    ['End', () => move(list.length - 1)],
    ['Escape', () => setOpen(false)],
  ]);

  return (
    <main className="explorer">
      <form
        className="bar"
        onSubmit={(e) => {
          e.preventDefault();
          ask(input);
        }}
      >
        <TextInput
          ref={bar}
          className="grow"
          aria-label="Query"
          placeholder="Words, or fields: patient:…  agent:dr-rivera  request_id:…  outcome:refused  from:2026-11-22"
          value={input}
          onChange={(e) => setInput(e.currentTarget.value)}
          onKeyDown={(e) => {
            if (e.key === 'Escape') e.currentTarget.blur();
          }}
          error={'message' in typed && typed.message}
          spellCheck={false}
          autoComplete="off"
          autoFocus
        />
        <Button type="submit" disabled={'message' in typed} loading={trail.isFetching && !trail.isFetchingNextPage}>Search</Button>
      </form>
      <Group className="said" gap="xs" role="status" aria-live="polite">
        {Object.entries(filters).map(([field, value]) => (
          <Badge key={field} variant="light" tt="none">{field === 'q' ? 'text' : field} is {value}</Badge>
        ))}
        {trail.data && <Text size="xs" c="dimmed">{list.length} events{trail.hasNextPage ? ', and more' : ''}, as of {utc(new Date(trail.dataUpdatedAt).toISOString())}</Text>}
        <Text size="xs" c="dimmed" ml="auto" visibleFrom="sm"><Kbd size="xs">/</Kbd> search <Kbd size="xs">j</Kbd> <Kbd size="xs">k</Kbd> move <Kbd size="xs">Enter</Kbd> open <Kbd size="xs">Esc</Kbd> close</Text>
      </Group>

      {trail.isError && !signedOut && (
        <Alert className="problem" color="red" role="alert" title={refusal?.offline ? 'Offline' : 'The search failed'}>
          <Text size="sm">
            {refusal?.problem.status === 403 ? `${name} may not read the audit trail. Ask an administrator for the role of compliance officer.` : trail.error.message}
            {refusal?.problem.detail && ` ${refusal.problem.detail}`}
            {list.length > 0 && ' What is below was read before.'}
          </Text>
          {refusal?.problem.request_id && <Text size="xs" c="dimmed">Request {refusal.problem.request_id}</Text>}
          <Button mt="xs" size="xs" variant="default" onClick={() => void (trail.isFetchNextPageError ? trail.fetchNextPage() : trail.refetch())}>Try again</Button>
        </Alert>
      )}

      <div className="split">
        <div className="rows" ref={rows}>
          {trail.isPending && !trail.isError && <Group p="md" role="status"><Loader size="sm" /><Text size="sm">Reading the trail from {server}…</Text></Group>}
          {trail.isSuccess && list.length === 0 && <Empty filters={filters} onClear={() => ask('')} />}
          {list.length > 0 && (
            <Table className="trail" role="grid" aria-label="Audit events" stickyHeader highlightOnHover verticalSpacing={4} fz="xs">
              <Table.Thead>
                <Table.Tr>
                  {['Time (UTC)', 'Who', 'Interaction', 'Decision', 'Outcome', 'Record', 'Patient', 'Took', 'Application'].map((h) => <Table.Th key={h}>{h}</Table.Th>)}
                </Table.Tr>
              </Table.Thead>
              <Table.Tbody>
                {list.map((e, i) => (
                  <Row
                    key={e.id}
                    event={e}
                    index={i}
                    selected={i === at}
                    onSelect={() => setAt(i)}
                    onOpen={() => {
                      setAt(i);
                      setOpen(true);
                    }}
                  />
                ))}
              </Table.Tbody>
            </Table>
          )}
          {trail.hasNextPage && (
            <Button m="sm" size="xs" variant="default" loading={trail.isFetchingNextPage} onClick={() => void trail.fetchNextPage()}>Load older events</Button>
          )}
        </div>
        {open && chosen && <Inspector event={chosen} onClose={() => setOpen(false)} onQuery={ask} />}
      </div>
    </main>
  );
}

interface RowProps {
  event: Event;
  index: number;
  selected: boolean;
  onSelect: () => void;
  onOpen: () => void;
}

function Row({ event: e, index, selected, onSelect, onOpen }: RowProps) {
  return (
    <Table.Tr
      data-row={index}
      tabIndex={selected ? 0 : -1}
      aria-selected={selected}
      onFocus={onSelect}
      onClick={onOpen}
      onKeyDown={(k) => {
        if (k.key === 'Enter') onOpen();
      }}
    >
      <Table.Td className="mono">{utc(e.recorded).replace(' UTC', '')}</Table.Td>
      <Table.Td>{who(e)}</Table.Td>
      <Table.Td>{e.interaction || kind(e.type)}</Table.Td>
      <Table.Td><State of={decision(e.decision.allowed)} /></Table.Td>
      <Table.Td><State of={outcome(e.outcome)} /></Table.Td>
      <Table.Td className="mono clip">{what(e)}</Table.Td>
      <Table.Td className="mono clip">{e.patient ?? ''}</Table.Td>
      <Table.Td className="mono number">{duration(e.timing.total)}</Table.Td>
      <Table.Td>{e.agent.client ?? ''}</Table.Td>
    </Table.Tr>
  );
}

/** A verdict: its word says it, its colour repeats it. */
export function State({ of }: { of: Verdict }) {
  return <Badge className="verdict" size="sm" variant="dot" color={of.color} tt="none">{of.word}</Badge>;
}

function Empty({ filters, onClear }: { filters: Record<string, string>; onClear: () => void }) {
  const said = Object.keys(filters).length > 0;
  return (
    <div className="empty">
      <Text fw={500}>No event matches.</Text>
      <Text size="sm" c="dimmed">
        {said ? 'Every filter above must hold. Take one away, or widen the time.' : 'The trail is empty: nobody has used this deployment yet.'}
      </Text>
      {said && <Button mt="sm" size="xs" variant="default" onClick={onClear}>Show all events</Button>}
    </div>
  );
}

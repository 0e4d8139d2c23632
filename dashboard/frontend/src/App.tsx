import { Alert, Badge, Button, Center, Group, Loader, Text, Title, useComputedColorScheme, useMantineColorScheme } from '@mantine/core';
import { useIdle } from '@mantine/hooks';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { useEffect, useState } from 'react';

import { Explorer } from './Explorer';
import { SignIn } from './SignIn';
import { completeSignIn, readiness, session, signOut, type Session } from './transport';

const idleLimit = 15 * 60_000; // as dashboard/session.go has it

/** Whoever is signed in sees the shell; everybody else sees the way in. */
export function App() {
  const queries = useQueryClient();
  const [returned] = useState(() => (location.pathname === '/signin/callback' ? location.search.slice(1) : ''));
  const state = useQuery({
    queryKey: ['session'],
    // Not cancellable: a code is handed over once, and who mounts again waits for the same answer.
    queryFn: async () => {
      if (location.pathname !== '/signin/callback') return session();
      history.replaceState(null, '', '/'); // the code works once and must not stay in the address bar
      return completeSignIn(returned);
    },
    // Behind a window, sign-in happens elsewhere and is watched for.
    refetchInterval: (q) => (q.state.data?.waiting && q.state.data.window ? 1000 : false),
  });
  const become = (s: Session) => {
    queries.removeQueries({ predicate: (q) => q.queryKey[0] !== 'session' }); // nothing of one person is left for the next
    queries.setQueryData(['session'], s);
  };

  if (state.isPending) {
    return (
      <Center mih="100vh">
        <Group role="status">
          <Loader size="sm" />
          <Text>Asking who is signed in…</Text>
        </Group>
      </Center>
    );
  }
  if (state.isError) {
    return (
      <Center mih="100vh" p="md">
        <Alert color="red" title="The dashboard cannot start" role="alert" maw={480}>
          <Text size="sm" mb="sm">{state.error.message}</Text>
          <Button size="xs" onClick={() => void state.refetch()}>Try again</Button>
        </Alert>
      </Center>
    );
  }
  if (!state.data.user) return <SignIn session={state.data} become={become} />;
  return <Shell session={state.data} become={become} />;
}

function Shell({ session: s, become }: { session: Session; become: (s: Session) => void }) {
  const queries = useQueryClient();
  const idle = useIdle(idleLimit, { initialState: false });
  const leave = useMutation({ mutationFn: signOut, onSuccess: become });
  const lock = useMutation({
    mutationFn: signOut,
    onSettled: (left) => become({ ...(left ?? s), user: '', name: '', notice: 'You were signed out after fifteen minutes without activity.' }),
  });
  const { mutate: lockNow } = lock;
  useEffect(() => {
    if (idle) lockNow();
  }, [idle, lockNow]);

  return (
    <div className="shell">
      <Group component="header" className="top" gap="md" wrap="nowrap">
        <Title order={1} size="h4">Chartkeep</Title>
        <Text size="sm" c="dimmed" truncate>{s.server}</Text>
        <Connection />
        <Group gap="xs" ml="auto" wrap="nowrap">
          <Text size="sm" truncate>{s.name}</Text>
          <SchemeButton />
          <Button size="xs" variant="default" loading={leave.isPending} onClick={() => leave.mutate()}>Sign out</Button>
        </Group>
      </Group>
      <Explorer server={s.server} name={s.name} onSignedOut={() => void queries.invalidateQueries({ queryKey: ['session'] })} />
    </div>
  );
}

/** How the deployment is, in a word, watched all the time. */
function Connection() {
  const ready = useQuery({ queryKey: ['ready'], queryFn: ({ signal }) => readiness(signal), refetchInterval: 15_000, retry: false });
  if (ready.isPending) return <Badge variant="default" tt="none">Server: asking</Badge>;
  if (ready.isError) return <Badge color="red" variant="dot" tt="none">Server: {ready.error.message.replace(/\.$/, '')}</Badge>;
  return <Badge color="teal" variant="dot" tt="none">Server: {ready.data.status}</Badge>;
}

function SchemeButton() {
  const { setColorScheme } = useMantineColorScheme();
  const other = useComputedColorScheme('light') === 'light' ? 'dark' : 'light';
  return <Button size="xs" variant="default" onClick={() => setColorScheme(other)}>{other === 'dark' ? 'Dark' : 'Light'}</Button>;
}

import { Alert, Button, Card, Center, Loader, Stack, Text, Title } from '@mantine/core';
import { useMutation, useQueryClient } from '@tanstack/react-query';

import { cancelSignIn, signIn, type Session } from './transport';

/** The way in: the organisation's own sign-in page, in this tab or, behind a window, in the system browser. */
export function SignIn({ session, become }: { session: Session; become: (s: Session) => void }) {
  const queries = useQueryClient();
  const begin = useMutation({
    mutationFn: signIn,
    onSuccess: ({ url }) => {
      if (session.window) void queries.invalidateQueries({ queryKey: ['session'] });
      else location.assign(url);
    },
  });
  const cancel = useMutation({ mutationFn: cancelSignIn, onSuccess: become });
  const waiting = session.window && session.waiting;

  return (
    <Center component="main" mih="100vh" p="md">
      <Card withBorder padding="xl" radius="md" maw={440} w="100%">
        <Stack>
          <Title order={1} size="h3">Chartkeep</Title>
          <Text c="dimmed" size="sm">Who looked at what, and why it was allowed. Server: {session.server}</Text>
          {session.notice && <Alert color="orange" role="status">{session.notice}</Alert>}
          {begin.isError && <Alert color="red" role="alert" title="Signing in is not possible now">{begin.error.message}</Alert>}
          {waiting ? (
            <>
              <Text role="status"><Loader size="xs" mr="xs" />Waiting for you to sign in in your browser…</Text>
              <Button variant="default" loading={cancel.isPending} onClick={() => cancel.mutate()}>Cancel</Button>
            </>
          ) : (
            <Button size="md" loading={begin.isPending || (begin.isSuccess && !session.window)} onClick={() => begin.mutate()}>
              Continue in browser
            </Button>
          )}
          <Text c="dimmed" size="xs">Your sign-in stays in this program’s memory and is never written to a file.</Text>
        </Stack>
      </Card>
    </Center>
  );
}

import '@mantine/core/styles.css';
import './dashboard.css';

import { MantineProvider } from '@mantine/core';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { StrictMode } from 'react';
import { createRoot } from 'react-dom/client';

import { App } from './App';
import { Refusal } from './transport';

const root = document.getElementById('root');
if (!root) throw new Error('index.html has no root');

// Vite puts the nonce of this page load here; browsers hide the attribute from style sheets and show scripts the property.
const nonce = () => document.querySelector<HTMLMetaElement>('meta[property=csp-nonce]')?.nonce ?? '';

const client = new QueryClient({
  defaultOptions: {
    queries: {
      // Each look at the trail is an event of the trail: nothing is fetched that nobody asked for.
      refetchOnWindowFocus: false,
      refetchOnReconnect: false,
      staleTime: Infinity,
      retry: (count, e) => count < 1 && e instanceof Refusal && e.offline,
    },
  },
});

createRoot(root).render(
  <StrictMode>
    <MantineProvider defaultColorScheme="auto" getStyleNonce={nonce} theme={{ primaryColor: 'cyan', primaryShade: { light: 9, dark: 8 }, respectReducedMotion: true, cursorType: 'pointer' }}>
      <QueryClientProvider client={client}>
        <App />
      </QueryClientProvider>
    </MantineProvider>
  </StrictMode>,
);

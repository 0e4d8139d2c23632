import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

import { output, types } from '../api.js';

test('src/api.ts is what the API describes; npm run api makes it anew', () => {
  expect(readFileSync(output, 'utf8')).toBe(types());
});

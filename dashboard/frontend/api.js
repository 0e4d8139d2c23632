// Writes src/api.ts: the types of what the dashboard reads, from the API's own description. npm run api
import { readFileSync, writeFileSync } from 'node:fs';
import { argv } from 'node:process';
import { fileURLToPath } from 'node:url';

/** @typedef {{ $ref?: string, type?: string, enum?: (string | number)[], items?: Schema, required?: string[], properties?: Record<string, Schema>, description?: string }} Schema */

const description = new URL('../../server/rest/openapi.json', import.meta.url);
export const output = new URL('src/api.ts', import.meta.url);

/** The text of src/api.ts for the description in the repository. */
export function types() {
  /** @type {{ components: { schemas: Record<string, Schema> } }} */
  const api = JSON.parse(readFileSync(description, 'utf8'));
  /** @type {Set<string>} */
  const wanted = new Set(['EventPage', 'Problem']);

  /** @param {Schema} s @returns {string} */
  const type = (s) => {
    if (s.$ref) {
      const name = s.$ref.replace('#/components/schemas/', '');
      wanted.add(name);
      return name;
    }
    if (s.enum) return s.enum.map((v) => JSON.stringify(v)).join(' | ');
    switch (s.type) {
      case 'array':
        return `${type(s.items ?? {})}[]`;
      case 'integer':
      case 'number':
        return 'number';
      case 'string':
      case 'boolean':
        return s.type;
      default:
        return 'unknown';
    }
  };

  let text = '// Made by api.js from server/rest/openapi.json. Do not edit.\n';
  for (const name of wanted) { // grows while it is walked
    const schema = api.components.schemas[name];
    if (!schema) throw new Error(`openapi.json has no schema ${name}`);
    text += '\n';
    if (schema.description) text += `/** ${schema.description} */\n`;
    text += `export interface ${name} {\n`;
    for (const [property, s] of Object.entries(schema.properties ?? {})) {
      if (s.description) text += `  /** ${s.description} */\n`;
      text += `  ${property}${schema.required?.includes(property) ? '' : '?'}: ${type(s)};\n`;
    }
    text += '}\n';
  }
  return text;
}

if (argv[1] === fileURLToPath(import.meta.url)) writeFileSync(output, types());

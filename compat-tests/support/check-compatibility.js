// Holds COMPATIBILITY.md against the tests. It names a test as `path › title`: the path is below `compat-tests/`, without its ending, or begins with
// `src/`; what a title takes from a variable is written `…`.

import { existsSync, readFileSync } from 'node:fs';

const ROOT = new URL('../../', import.meta.url);
const ENDINGS = ['.test.js', '.js', '.rs', '.py', '.rb'];

/** How each language names its tests; the last group that matched is the title. */
const TITLES = {
  js: /\b(?:test|step)\(\s*(['"`])((?:\\.|(?!\1).)*)\1/gs,
  py: /^def (test_\w+)/gm,
  rb: /^ +def (test_\w+)|^ +scenario "([^"]*)"/gm,
  rs: /#\[(?:tokio::)?test[^\]]*\]\s+(?:#\[[^\]]*\]\s+)*(?:async )?fn (\w+)/g,
};

/** `[{line, path, title}]` for every test that the text names. */
export function references(markdown) {
  return markdown.split('\n').flatMap((text, index) => [...text.matchAll(/`([^`]*?) › ([^`]*)`/g)].map(([, path, title]) => ({ line: index + 1, path, title })));
}

/** Whether that file has a test of that title. */
export function exists({ path, title }) {
  const file = fileOf(path);
  return file !== undefined && titlesIn(file).has(title);
}

/** `[{line, text}]` for every row of a table with a column “Shown by” that names no test there and does not begin with “not”, which gives the reason. */
export function unprovenRows(markdown) {
  let proves = false;
  return markdown.split('\n').flatMap((text, index) => {
    const last = text.startsWith('|') ? text.split('|').at(-2).trim() : undefined;
    if (last === undefined) proves = false;
    else if (last === 'Shown by') proves = true;
    else if (proves && !/^-+$|^not |`[^`]+ › [^`]+`/.test(last)) return [{ line: index + 1, text }];
    return [];
  });
}

function fileOf(path) {
  const names = path.startsWith('src/') ? [path] : ENDINGS.map((ending) => `compat-tests/${path}${ending}`);
  return names.find((name) => existsSync(new URL(name, ROOT)));
}

const titlesByFile = new Map();

function titlesIn(file) {
  if (!titlesByFile.has(file)) {
    const text = readFileSync(new URL(file, ROOT), 'utf8');
    const titles = [...text.matchAll(TITLES[file.split('.').at(-1)])].map((match) => normalised(match.findLast((group) => group !== undefined)));
    titlesByFile.set(file, new Set(titles));
  }
  return titlesByFile.get(file);
}

function normalised(title) {
  return title.replace(/\$\{[^}]*\}…?/g, '…').replace(/\\(.)/g, '$1');
}

// How the owner of this process talks to it: its config and commands on stdin, one JSON object a
// line, answers on stdout. The end of stdin means that the owner is gone, so nothing of ours may
// outlive it.

import { createInterface } from "node:readline";

/**
 * Read the config, start, announce the port, then carry out commands until stdin ends.
 *
 * `start(config)` resolves to `{ port, commands }`; `commands` maps a name to an async function of
 * the command's fields. A start that fails is told to the owner as one sentence, and the process
 * exits with 1.
 */
export function serveControl(start) {
  keepStdoutForAnswers();
  process.on("SIGTERM", () => process.exit(0));
  process.on("SIGINT", () => {}); // Ctrl-C belongs to the owner

  const lines = createInterface({ input: process.stdin });
  let commands = null;
  lines.once("line", async (line) => {
    try {
      const started = await start(JSON.parse(line));
      commands = started.commands;
      say({ ready: { port: started.port } });
      lines.on("line", (command) => answer(commands, command));
    } catch (error) {
      console.error(error);
      say({ error: oneSentence(error) }, () => process.exit(1));
    }
  });
  lines.on("close", () => process.exit(0));
}

async function answer(commands, line) {
  const { id, do: name, ...fields } = JSON.parse(line);
  try {
    if (!Object.hasOwn(commands, name)) throw new Error(`unknown command '${name}'`);
    say({ id, ok: (await commands[name](fields)) ?? null });
  } catch (error) {
    say({ id, error: oneSentence(error) });
  }
}

function say(message, then) {
  process.stdout.write(JSON.stringify(message) + "\n", then);
}

function oneSentence(error) {
  return String(error?.message || error).split("\n")[0];
}

// A library that logs to stdout would be read as an answer.
function keepStdoutForAnswers() {
  console.log = console.info = console.debug = console.error;
}

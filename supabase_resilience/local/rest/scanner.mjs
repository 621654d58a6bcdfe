// Reading a text from left to right: what the grammar's functions share.

import { badQuery } from "./errors.mjs";

export class Scanner {
  constructor(text, what, shown = text) {
    Object.assign(this, { text, what, shown, at: 0 });
  }

  get atEnd() {
    return this.at >= this.text.length;
  }

  next(literal) {
    if (!this.text.startsWith(literal, this.at)) return false;
    this.at += literal.length;
    return true;
  }

  sees(literal) {
    return this.text.startsWith(literal, this.at);
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const match = pattern.exec(this.text);
    if (match) this.at = pattern.lastIndex;
    return match;
  }

  /** Run `parse`; when it returns null, act as if nothing had been read. */
  attempt(parse) {
    const start = this.at;
    const result = parse();
    if (result === null) this.at = start;
    return result;
  }

  expect(literal) {
    if (!this.next(literal)) this.fail(`expecting "${literal}"`);
  }

  fail(
    expectation,
    seen = this.atEnd ? "unexpected end of input" : `unexpected "${this.text[this.at]}"`,
  ) {
    const details = [seen, expectation].filter(Boolean).join(" ");
    throw badQuery(
      `"failed to parse ${this.what} (${this.shown})" (line 1, column ${this.at + 1})`,
      details,
    );
  }

  spaces() {
    this.match(/[ \t]*/y);
  }

  list(item) {
    const items = [item()];
    while (this.next(",")) items.push(item());
    return items;
  }

  complete(result) {
    if (!this.atEnd) this.fail("expecting end of input");
    return result;
  }
}

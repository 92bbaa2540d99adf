// Tokens of a tokenizer as readable text. Byte-level vocabularies (GPT-2, Qwen, Llama 3) write each byte as a printable
// character; SentencePiece writes a space as ▁; word-level ones leave the spaces between words out.

const BYTES = (() => {
  const printable = [];
  for (const [from, to] of [[33, 126], [161, 172], [174, 255]]) for (let b = from; b <= to; b++) printable.push(b);
  const map = new Map(printable.map((b) => [String.fromCodePoint(b), b]));
  let extra = 256;
  for (let b = 0; b < 256; b++) if (!printable.includes(b)) map.set(String.fromCodePoint(extra++), b);
  return map;
})();
const strict = new TextDecoder("utf-8", { fatal: true });

export function reader(turns) {
  const tokens = turns.flatMap((t) => t.action_tokens ?? []), sample = tokens.slice(0, 4000);
  if (sample.some((t) => typeof t === "string" && /[ĠĊ]/.test(t))) return byteLevel;
  if (sample.some((t) => typeof t === "string" && t.includes("▁"))) return (t) => t.replaceAll("▁", " ").replaceAll("<0x0A>", "\n");
  const first = turns.find((t) => (t.action_tokens ?? []).length > 1);
  const wordLevel = first && first.action_tokens.join("") !== first.action && first.action_tokens.join(" ").replace(/\s+/g, " ").trim() === String(first.action).replace(/\s+/g, " ").trim();
  return wordLevel ? (t) => `${t} ` : (t) => t;
}

function byteLevel(token) {
  const bytes = [];
  for (const c of token) {
    const b = BYTES.get(c);
    if (b === undefined) return token;  // an added token such as <|im_end|> with characters of its own
    bytes.push(b);
  }
  try {
    return strict.decode(new Uint8Array(bytes));
  } catch {
    return bytes.map((b) => (b < 128 ? String.fromCharCode(b) : `\u27e8${b.toString(16)}\u27e9`)).join("");  // part of a character
  }
}

// A token on one line, with what cannot be seen made visible.
export function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

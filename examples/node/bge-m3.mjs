// A bundle of m3-export in Node: dense vectors, lexical weights and ColBERT rows, with the figures that Python gives.
//
// The manifest says everything: which files, which ids, which heads. Texts run one at a time, so that company never
// changes a vector; a file that is damaged, or a variant that would be computed otherwise here, is refused.

import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import { PreTrainedTokenizer } from "@huggingface/transformers";
import { env, InferenceSession, Tensor } from "onnxruntime-node";

const OLDEST_SCHEMA = 2, NEWEST_SCHEMA = 4;
const SMALL_FILE_BYTES = 2 ** 20; // digests of files up to this size are compared, of larger ones only the size
const CONFIGURABLE_SINCE_MINOR = 30; // onnxruntime-node 1.30 is the first release that was seen to take session configuration
const INT8_DOT = ["avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"];

export class M3Bundle {
  #manifest; #tokenizer; #session;

  constructor(manifest, tokenizer, session) {
    this.#manifest = manifest;
    this.#tokenizer = tokenizer;
    this.#session = session;
  }

  /** Open a bundle's folder. `variant` is one for ONNX Runtime; `threads` 0 takes every core. */
  static async open(folder, { variant: name = "onnx-int8", threads = 0 } = {}) {
    const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
    const version = manifest.schema_version;
    if (!(version >= OLDEST_SCHEMA && version <= NEWEST_SCHEMA)) {
      throw new Error(`schema version ${version}: this example reads ${OLDEST_SCHEMA} to ${NEWEST_SCHEMA}`);
    }
    const variant = manifest.variants.find((one) => one.name === name);
    if (variant?.engine !== "onnxruntime") {
      const fitting = manifest.variants.filter((one) => one.engine === "onnxruntime").map((one) => one.name);
      throw new Error(`no variant ${name} for onnxruntime; the bundle has: ${fitting.join(", ") || "none"}`);
    }
    const extra = sessionConfig(variant);
    for (const path of [manifest.tokenizer.path, ...variant.files]) checkFile(folder, path, manifest.files);
    const pipeline = JSON.parse(readFileSync(join(folder, manifest.tokenizer.path), "utf8"));
    const options = { intraOpNumThreads: threads, interOpNumThreads: 1, logSeverityLevel: 3, extra };
    const session = await InferenceSession.create(join(folder, variant.graph), options);
    return new M3Bundle(manifest, new PreTrainedTokenizer(pipeline, {}), session);
  }

  get spaceId() {
    return this.#manifest.space_id;
  }

  /**
   * Encode texts, in order. A text of more than `maxLength` tokens is cut, and `truncated` says so.
   *
   * Each gives { tokens, truncated, denseVecs: Float32Array, lexicalWeights: { id: weight }, colbertVecs: [Float32Array] },
   * with the heads that the bundle has.
   */
  async encode(texts, { maxLength = this.#manifest.geometry.max_tokens } = {}) {
    const most = this.#manifest.geometry.max_tokens;
    if (!Number.isInteger(maxLength) || maxLength < 3 || maxLength > most) {
      throw new RangeError(`maxLength must be an integer from 3 to ${most}, got ${maxLength}`);
    }
    const stranger = texts.findIndex((text) => typeof text !== "string");
    if (stranger >= 0) throw new TypeError(`text ${stranger} is no string`);
    const found = [];
    for (const text of texts) {
      // NEL is white space to the tokenizer, and none to JavaScript's regular expressions
      const ids = this.#tokenizer.encode(text.replaceAll("\u0085", " "));
      found.push(await this.#encodeOne(ids, maxLength));
    }
    return found;
  }

  async #encodeOne(whole, maxLength) {
    const { tokenizer, heads } = this.#manifest;
    const truncated = whole.length > maxLength;
    const ids = truncated ? [...whole.slice(0, maxLength - 1), tokenizer.eos_id] : whole;
    const shape = [1, ids.length];
    const raw = await this.#session.run({
      input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), shape),
      attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
    });
    const encoding = { tokens: ids.length, truncated, denseVecs: raw.dense_vecs.data };
    if (heads.includes("sparse")) encoding.lexicalWeights = heaviest(ids, raw.token_weights.data, tokenizer.unused_ids);
    if (heads.includes("colbert")) encoding.colbertVecs = rows(raw.colbert_vecs);
    return encoding;
  }

  /** Free the model's memory. */
  close() {
    return this.#session.release();
  }
}

/** The weight of each token id: the largest of its places; special ids, and ids without weight, have none. */
function heaviest(ids, weights, unusedIds) {
  const found = {};
  ids.forEach((id, place) => {
    if (weights[place] > (found[id] ?? 0) && !unusedIds.includes(id)) found[id] = weights[place];
  });
  return found;
}

function rows({ data, dims: [, count, size] }) {
  return Array.from({ length: count }, (_, row) => data.subarray(row * size, (row + 1) * size));
}

/** The session configuration that Python sets, and the variant's own; refused where it cannot be set or would not help. */
function sessionConfig({ name, precision, properties, needs }) {
  const hasInt8Dot = INT8_DOT.some((flag) => cpuFlags().has(flag));
  if (needs.includes("int8_dot") && !hasInt8Dot) {
    throw new Error(`variant ${name} needs VNNI, AMX or Arm's dot product, which this processor lacks; open onnx-fp32`);
  }
  const config = { "session.intra_op.allow_spinning": "0", ...properties };
  // without VNNI or AMX, or where the flags cannot be read: products of u8 and s8 would saturate at 16 bits
  if (precision !== "fp32" && process.arch === "x64" && !hasInt8Dot) config["session.x64quantprecision"] = "1";
  const [major, minor] = env.versions.node.split(".").map(Number);
  if (major === 1 && minor < CONFIGURABLE_SINCE_MINOR && Object.keys(config).length > 1) {
    throw new Error(
      `variant ${name} needs ${Object.keys(config).slice(1).join(", ")} on this processor, which onnxruntime-node ` +
        `${env.versions.node} cannot set: take ${major}.${CONFIGURABLE_SINCE_MINOR} or newer, open onnx-fp32, or use Python`,
    );
  }
  return config;
}

function cpuFlags() {
  const text = existsSync("/proc/cpuinfo") ? readFileSync("/proc/cpuinfo", "utf8") : "";
  return new Set(/^(?:flags|Features)\s*:(.*)$/m.exec(text)?.[1].trim().split(/\s+/));
}

function checkFile(folder, path, files) {
  const entry = files.find((one) => one.path === path);
  if (path.split("/").includes("..") || isAbsolute(path)) throw new Error(`${path} is not a path inside the bundle`);
  const full = join(folder, path);
  const size = existsSync(full) ? statSync(full).size : undefined;
  if (entry === undefined || size !== entry.size_bytes) {
    throw new Error(`${path} is damaged: expected ${entry?.size_bytes} bytes, got ${size}; copy or export the bundle again`);
  }
  if (size <= SMALL_FILE_BYTES && createHash("sha256").update(readFileSync(full)).digest("hex") !== entry.sha256) {
    throw new Error(`${path} is damaged: another SHA-256 than the manifest's; copy or export the bundle again`);
  }
}

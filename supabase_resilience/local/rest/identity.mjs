// Who asks: the API key opens the door, as Supabase's gateway does it; the JWT says which role the
// request runs as.

import { createHmac, timingSafeEqual } from "node:crypto";
import { ApiError } from "./errors.mjs";

const ALLOWED_SKEW = 30; // seconds, as in PostgREST

export class Identities {
  #secret;
  #roleByKey;

  constructor({ jwt_secret, publishable_key, secret_key }) {
    this.#secret = jwt_secret;
    this.#roleByKey = new Map([
      [publishable_key, "anon"],
      [secret_key, "service_role"],
    ]);
  }

  /** Return `{ role, claims, authenticated }` of a request, or throw the 401 it deserves. */
  identify(headers, query) {
    const keyRole = this.#roleOfKey(headers.apikey ?? query.get("apikey"));
    const token = bearer(headers.authorization);
    if (token === null || this.#roleByKey.has(token)) {
      return identity({ role: token === null ? keyRole : this.#roleByKey.get(token) });
    }
    return identity(this.#verified(token));
  }

  #roleOfKey(key) {
    if (!key) {
      throw gatewayError(
        "No API key found in request",
        "No `apikey` request header or url param was found.",
      );
    }
    const role = this.#roleByKey.get(key) ?? this.#roleOfLegacyKey(key);
    if (role) return role;
    throw gatewayError(
      "Invalid API key",
      "Double check your Supabase `anon` or `service_role` API key.",
    );
  }

  // The older API keys are JWTs that name a role.
  #roleOfLegacyKey(key) {
    try {
      return this.#verified(key).role;
    } catch {
      return null;
    }
  }

  #verified(token) {
    const claims = checkTimes(this.#decode(token));
    return { ...claims, role: String(claims.role ?? "anon") };
  }

  #decode(token) {
    if (token === "") throw invalidToken("PGRST301", "Empty JWT is sent in Authorization header");
    const parts = token.split(".");
    if (parts.length !== 3) {
      throw invalidToken("PGRST301", `Expected 3 parts in JWT; got ${parts.length}`);
    }
    const [header, payload] = parts.slice(0, 2).map(decodeSegment);
    if (header?.alg !== "HS256") {
      throw invalidToken("PGRST301", "Wrong or unsupported encoding algorithm");
    }
    const expected = createHmac("sha256", this.#secret).update(`${parts[0]}.${parts[1]}`).digest();
    if (!sameBytes(expected, Buffer.from(parts[2], "base64url"))) {
      throw invalidToken(
        "PGRST301",
        "No suitable key or wrong key type",
        "None of the keys was able to decode the JWT",
      );
    }
    if (payload === null || typeof payload !== "object") {
      throw invalidToken("PGRST303", "Parsing claims failed");
    }
    return payload;
  }
}

function identity(claims) {
  return { role: claims.role, claims, authenticated: claims.role !== "anon" };
}

function bearer(authorization) {
  const match = /^bearer(?: +(.*))?$/i.exec(authorization ?? "");
  return match ? (match[1] ?? "").trim() : null;
}

function decodeSegment(segment) {
  try {
    return JSON.parse(Buffer.from(segment, "base64url").toString());
  } catch {
    return null;
  }
}

function sameBytes(one, other) {
  return one.length === other.length && timingSafeEqual(one, other);
}

function checkTimes(claims) {
  const now = Math.floor(Date.now() / 1000);
  for (const name of ["exp", "nbf", "iat"]) {
    if (claims[name] != null && typeof claims[name] !== "number") {
      throw invalidToken("PGRST303", `The JWT '${name}' claim must be a number`);
    }
  }
  if (claims.exp < now - ALLOWED_SKEW) throw invalidToken("PGRST303", "JWT expired");
  if (claims.nbf > now + ALLOWED_SKEW) throw invalidToken("PGRST303", "JWT not yet valid");
  if (claims.iat > now + ALLOWED_SKEW) throw invalidToken("PGRST303", "JWT issued at future");
  return claims;
}

function invalidToken(code, message, details = null) {
  const challenge = `Bearer error="invalid_token", error_description=${JSON.stringify(message)}`;
  return new ApiError(401, code, message, { details, headers: { "WWW-Authenticate": challenge } });
}

/** An error of the gateway in front of PostgREST: it has no code. */
export class GatewayError extends ApiError {
  get body() {
    return this.hint === null
      ? { message: this.message }
      : { message: this.message, hint: this.hint };
  }
}

function gatewayError(message, hint) {
  return new GatewayError(401, null, message, { hint });
}

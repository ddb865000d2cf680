// Reads the tags of a Matroska file (RFC 9559). The file is a tree of elements: id, size, then data or child elements.

const SEGMENT = 0x18538067;
const TAGS = 0x1254c367;
const TAG = 0x7373;
const SIMPLE_TAG = 0x67c8;
const TAG_NAME = 0x45a3;
const TAG_STRING = 0x4487;
const MAX_HEADER = 12; // bytes
const MAX_TEXT = 2 ** 26; // bytes
const MAX_CHILDREN = 100_000;

/**
 * Return the tags with these names, in lower case, as {name: text}. (Matroska writes tag names in capitals.)
 * Reads element headers and tags only, no frames, and stops when every name is found.
 */
export async function readTags(file, names) {
    const found = {};
    const path = [SEGMENT, TAGS, TAG, SIMPLE_TAG];
    for await (const tag of descendants(file, { start: 0, end: file.size }, path)) {
        const parts = {};
        for await (const part of children(file, tag)) {
            if (part.id === TAG_NAME || part.id === TAG_STRING) parts[part.id] = await text(file, part);
        }
        const name = parts[TAG_NAME]?.toLowerCase();
        if (names.includes(name)) found[name] = parts[TAG_STRING];
        if (names.every((wanted) => wanted in found)) break;
    }
    return found;
}

async function* descendants(file, element, [id, ...deeper]) {
    for await (const child of children(file, element)) {
        if (child.id !== id) continue;
        if (deeper.length) yield* descendants(file, child, deeper);
        else yield child;
    }
}

async function* children(file, { start, end }) {
    for (let count = 0; start < end && count < MAX_CHILDREN; count++) {
        const head = header(await bytes(file, start, MAX_HEADER));
        if (!head) return; // damaged, or not Matroska
        const child = { id: head.id, start: start + head.length };
        start = child.start + head.size;
        yield { ...child, end: Math.min(start, end) };
    }
}

/** Parse id and size. An id keeps its length bits, a size does not. A size of all ones means up to the parent's end. */
function header(data) {
    const idLength = vintLength(data[0]);
    const sizeLength = vintLength(data[idLength]);
    if (idLength > 4 || sizeLength > 8 || idLength + sizeLength > data.length) return null;
    const id = number(data.subarray(0, idLength));
    const [first, ...rest] = data.subarray(idLength, idLength + sizeLength);
    const size = number([first & (0xff >> sizeLength), ...rest]);
    return { id, length: idLength + sizeLength, size: size >= 2 ** (7 * sizeLength) - 1 ? Infinity : size };
}

function vintLength(first = 0) {
    return Math.clz32(first) - 23;
}

function number(digits) {
    return digits.reduce((value, digit) => value * 256 + digit, 0);
}

async function text(file, { start, end }) {
    return new TextDecoder().decode(await bytes(file, start, Math.min(end - start, MAX_TEXT))).replace(/\0+$/, "");
}

async function bytes(file, start, length) {
    return new Uint8Array(await file.slice(start, start + length).arrayBuffer());
}

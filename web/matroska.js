// The tags of a Matroska file (RFC 9559), which is a tree of elements: an id, a size, and content or more elements.

const SEGMENT = 0x18538067;
const TAGS = 0x1254c367;
const TAG = 0x7373;
const SIMPLE_TAG = 0x67c8;
const TAG_NAME = 0x45a3;
const TAG_STRING = 0x4487;
const HEADER = 12; // bytes at most
const LONGEST = 2 ** 26; // bytes of a text
const MOST = 100_000; // elements side by side

/**
 * The texts of those of `names` (in lower case) that the file has: {name: text}. Matroska writes names in capitals.
 * Reads the headers of elements and the tags themselves, never a frame, and stops when every name is found.
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
    for (let count = 0; start < end && count < MOST; count++) {
        const head = header(await bytes(file, start, HEADER));
        if (!head) return; // damaged, or no Matroska
        const child = { id: head.id, start: start + head.length };
        start = child.start + head.size;
        yield { ...child, end: Math.min(start, end) };
    }
}

/** An id keeps its length's bits, a size does not; a size of ones alone is unknown and lasts to the parent's end. */
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
    return new TextDecoder().decode(await bytes(file, start, Math.min(end - start, LONGEST))).replace(/\0+$/, "");
}

async function bytes(file, start, length) {
    return new Uint8Array(await file.slice(start, start + length).arrayBuffer());
}

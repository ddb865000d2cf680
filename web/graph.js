/** The graph of the whole workflow, also from one of its subgraphs. */
export const rootOf = (graph) => graph?.rootGraph ?? graph;

/** All nodes of the workflow, also those in its subgraphs. */
export function everyNode(graph) {
    const root = rootOf(graph);
    return [root, ...(root?.subgraphs?.values?.() ?? [])].flatMap((one) => one?._nodes ?? []).filter(Boolean);
}

/** Add a widget that shows `element`, `height()` pixels high, and is not saved in prompts or workflows. */
export function display(node, name, element, height) {
    const widget = node.addDOMWidget(name, name, element, {
        serialize: false, // in prompts
        hideOnZoom: false,
        getMinHeight: height,
        getMaxHeight: height,
    });
    widget.serialize = false; // in workflows
    return widget;
}

"""Where the core meets ComfyUI: patchers, the memory manager, sampling hooks. The only package that imports comfy."""

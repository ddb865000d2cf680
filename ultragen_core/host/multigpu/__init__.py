"""One video over several GPUs of one machine, in ComfyUI's process and in the threads of its own GPU pool."""

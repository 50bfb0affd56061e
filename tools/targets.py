"""GPUs that programs are compiled for where there is none."""


def hopper(name: str, *, memory: int, bandwidth: int) -> str:
    """The description of a GPU of the Hopper generation, for `jax.experimental.topologies.get_topology_desc`.

    Args:
      name: of the device.
      memory: in bytes.
      bandwidth: of the memory, in bytes per second.
    """
    return f"""
gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
runtime_version: {{ major: 12 minor: 9 patch: 0 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
device_description_str: "{name}"
"""

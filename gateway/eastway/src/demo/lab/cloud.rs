//! One cloud: its folder of configuration, its gateways and its workloads.

#!/usr/bin/env bash
#SBATCH --job-name=hkm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
# One worker per node, with all its cores:      sbatch slurm.sh pool.zarr tree.zarr --n-clusters 1000,100
# One worker per GPU, with four GPUs per node:  sbatch --gres=gpu:4 slurm.sh ... (--gres=gpu:1 for one)
# Submit it in a folder shared by all nodes, from the environment with hkm. Submitting it again resumes the run.
set -euo pipefail
cluster="$PWD/cluster-$SLURM_JOB_ID.json"
worker=(dask worker --nthreads "$SLURM_CPUS_PER_TASK")
if [[ -n "${SLURM_JOB_GPUS:-}" ]]; then
    worker=(dask cuda worker --device-memory-limit 0)
    export HKM_DEVICE=cuda
elif [[ -n "${SLURM_MEM_PER_NODE:-}" ]]; then
    worker+=(--memory-limit "${SLURM_MEM_PER_NODE}MiB")
fi
dask scheduler --scheduler-file "$cluster" --port 0 --dashboard-address :0 &
scheduler=$!
trap 'rm -f "$cluster"; kill "$scheduler"' EXIT
until [[ -s "$cluster" ]]; do kill -0 "$scheduler"; sleep 1; done
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" "${worker[@]}" --scheduler-file "$cluster" --local-directory "${TMPDIR:-/tmp}" &
hkm cluster "$@" --scheduler-file "$cluster"

#!/usr/bin/env bash
# Trains on the GPUs of several pods of a Kubernetes cluster that has JobSet.
#
#   IMAGE=IMAGE CLAIM=CLAIM ./launch/kubernetes.sh --config configs/NAME.py --workdir /shared/DIR [...]
#
#   IMAGE  a container image with this repository at /drnet_jax and its requirements
#   CLAIM  a PersistentVolumeClaim that all pods can write to; it is mounted at /shared
#   NAME   of the JobSet; default: drnet
#   PODS   how many, one process each; default: 2
#   GPUS   of each; default: 8
#
# A pod that is evicted saves and stops; then all begin again, and go on from there. DRY_RUN=1 prints
# the manifest. What stops it: kubectl delete jobset "$NAME".
set -euo pipefail

: "${IMAGE:?is not set; see the head of launch/kubernetes.sh}"
: "${CLAIM:?is not set; see the head of launch/kubernetes.sh}"
NAME=${NAME:-drnet} PODS=${PODS:-2} GPUS=${GPUS:-8}

arguments=
for argument in "$@"; do
  # A string of YAML: single quotes within are doubled.
  arguments+=", '${argument//\'/\'\'}'"
done

manifest=$(cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
spec:
  failurePolicy:
    maxRestarts: 100
  replicatedJobs:
  - name: train
    replicas: 1
    template:
      spec:
        completionMode: Indexed
        parallelism: $PODS
        completions: $PODS
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 180
            containers:
            - name: train
              image: $IMAGE
              workingDir: /drnet_jax
              command: [python, -m, drnet_jax.main, train, --distributed, --stopped_status=75$arguments]
              env:
              - name: JAX_PLATFORMS
                value: cuda,cpu
              - name: JAX_COORDINATOR_ADDRESS
                value: $NAME-train-0-0.$NAME:12321
              - name: JAX_NUM_PROCESSES
                value: "$PODS"
              - name: JAX_PROCESS_ID
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
              resources:
                limits:
                  nvidia.com/gpu: $GPUS
              volumeMounts:
              - name: shared
                mountPath: /shared
              - name: memory
                mountPath: /dev/shm
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: $CLAIM
            - name: memory
              emptyDir:
                medium: Memory
EOF
)
if [[ ${DRY_RUN:-0} != 0 ]]; then
  echo "$manifest"
else
  kubectl apply --filename=- <<<"$manifest"
fi

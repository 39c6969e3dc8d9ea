"""Object storage: `s3://` over boto3, `file://` and plain paths with the same promises."""

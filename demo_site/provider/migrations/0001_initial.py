from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = [("oauth2_provider", "0022_refreshtoken_token_family_index")]
    operations = [
        migrations.CreateModel(
            name="Login",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("client", models.ForeignKey("oauth2_provider.Application", models.CASCADE)),
                ("session", models.CharField(max_length=32, db_index=True)),
                ("auth_time", models.PositiveBigIntegerField()),
                ("acr", models.CharField(max_length=64)),
                (
                    "grant",
                    models.OneToOneField("oauth2_provider.Grant", models.SET_NULL, null=True),
                ),
                ("id_tokens", models.ManyToManyField("oauth2_provider.IDToken")),
            ],
        ),
    ]
